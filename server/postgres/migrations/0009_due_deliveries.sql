-- outside a transaction: sends go on meanwhile.
--
-- Finds due deliveries without reading the outbox, which every replica does each second. Most rows have the same lease: a
-- new row goes to the index's end, and the rows of a batch share an entry.

DROP INDEX CONCURRENTLY IF EXISTS outbox_by_time;
CREATE INDEX CONCURRENTLY outbox_by_time ON outbox (next_attempt_time);
