-- Finds due deliveries without reading the outbox, which every replica does each second.
--
-- Most rows have the same lease: a new row goes to the index's end, and the rows of a batch share an entry. CREATE INDEX
-- without CONCURRENTLY holds up sends; the outbox is small while deliveries get through.

CREATE INDEX outbox_by_time ON outbox (next_attempt_time);
