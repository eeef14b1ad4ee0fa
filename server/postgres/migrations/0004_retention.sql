-- Indexes with which retention finds old rows without reading whole tables.
--
-- Old OTPs and deliveries need none: the ids that deliveries' primary key begins with are ordered by time. The tables
-- below get few rows, none of them in a send's transaction, so that an index by time costs little.

CREATE INDEX guess_budgets_by_time ON guess_budgets (window_start_time);
CREATE INDEX notices_by_time ON notices (create_time) WHERE status <> 'PENDING';
CREATE INDEX stripe_events_by_time ON stripe_events (create_time) WHERE status IN ('DONE', 'REJECTED');

-- One row: the id of the last delivery up to which all destinations are erased. An index of the remaining deliveries
-- would cost every send.
CREATE TABLE erased_destinations (last_delivery_id uuid NOT NULL);
INSERT INTO erased_destinations (last_delivery_id) VALUES ('00000000-0000-0000-0000-000000000000');
