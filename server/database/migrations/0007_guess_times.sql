-- When each wrong guess was, so that the budget holds for any stretch of time.
--
-- With a count and the beginning of its window, the end of one window and the beginning of the next could together take
-- nearly twice as many.

ALTER TABLE guess_budgets ADD COLUMN wrong_guess_times timestamptz[] NOT NULL DEFAULT '{}';
-- All of them as if they had just been: none counts for less time than it should.
UPDATE guess_budgets SET wrong_guess_times = array_fill(last_guess_time, ARRAY[least(wrong_guesses, 100)]);
ALTER TABLE guess_budgets
    DROP COLUMN wrong_guesses,
    DROP COLUMN window_start_time,
    -- The most that the setting allows.
    ADD CONSTRAINT no_more_than_100_wrong_guesses_count CHECK (cardinality(wrong_guess_times) <= 100);
CREATE INDEX guess_budgets_by_time ON guess_budgets (last_guess_time);
