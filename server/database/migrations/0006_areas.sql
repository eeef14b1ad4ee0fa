-- Budgets of unverified credits for the beginnings of numbers as well, beside those for countries.
--
-- An area is a country (ID) or the keyed digest of a number's first digits: beside a masked number the digits themselves
-- would leave few numbers to try. A delivery counts in each of its areas, which have spaces between them.

ALTER TABLE unverified_credits RENAME COLUMN country TO area;
ALTER TABLE deliveries RENAME COLUMN country TO areas;

-- For retention, which forgets windows that are over. Within a window the time stays, and the updates remain in place (HOT).
CREATE INDEX unverified_credits_by_time ON unverified_credits (window_start_time);
