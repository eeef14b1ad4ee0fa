-- outside a transaction: sends go on meanwhile.
--
-- Finds the fallbacks that are due. Rows of deliveries that wait for their outcome are not in it: a send does not write it.

DROP INDEX CONCURRENTLY IF EXISTS outbox_by_fall_back_time;
CREATE INDEX CONCURRENTLY outbox_by_fall_back_time ON outbox (fall_back_time) WHERE fall_back_time IS NOT NULL;
