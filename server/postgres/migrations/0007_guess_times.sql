-- The time of each wrong guess, so that the budget holds for every interval of its length (a sliding window).
--
-- With a count per fixed window, an interval across two windows could contain nearly twice as many wrong guesses.

ALTER TABLE guess_budgets ADD COLUMN wrong_guess_times timestamptz[] NOT NULL DEFAULT '{}';
-- Earlier guesses get the time of the last one: no guess counts for less time than it should.
UPDATE guess_budgets SET wrong_guess_times = array_fill(last_guess_time, ARRAY[least(wrong_guesses, 100)]);
ALTER TABLE guess_budgets
    DROP COLUMN wrong_guesses,
    DROP COLUMN window_start_time,
    -- The maximum of the setting.
    ADD CONSTRAINT no_more_than_100_wrong_guesses_count CHECK (cardinality(wrong_guess_times) <= 100);
CREATE INDEX guess_budgets_by_time ON guess_budgets (last_guess_time);
