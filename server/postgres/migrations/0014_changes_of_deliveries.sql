-- The status changes of a delivery before the last one, which is in status and update_time: [["UNKNOWN", "2026-…"], …].
-- Only reports write it: a send and its outcome, which is the first change, cost nothing more.
ALTER TABLE deliveries ADD COLUMN earlier_changes jsonb;
