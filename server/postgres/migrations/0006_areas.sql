-- Budgets of unverified credits for prefixes of numbers, besides those for countries.
--
-- An area is a country (ID) or the keyed digest of a number's first digits. The digits themselves, together with a
-- masked number, would leave few numbers to try. A delivery counts in each of its areas, which are separated by spaces.

ALTER TABLE unverified_credits RENAME COLUMN country TO area;
ALTER TABLE deliveries RENAME COLUMN country TO areas;

-- For retention, which deletes the rows of past windows. Within a window the time does not change, so updates stay on
-- the page (HOT).
CREATE INDEX unverified_credits_by_time ON unverified_credits (window_start_time);
