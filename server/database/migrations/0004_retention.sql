-- What retention needs to find old rows without looking at all of them.
--
-- Old OTPs and deliveries need nothing: the ids that deliveries' primary key begins with are ordered by time. These
-- tables get few rows, none of them on the way of a send, so that an index by time costs little.

CREATE INDEX guess_budgets_by_time ON guess_budgets (window_start_time);
CREATE INDEX notices_by_time ON notices (create_time) WHERE status <> 'PENDING';
CREATE INDEX stripe_events_by_time ON stripe_events (create_time) WHERE status IN ('DONE', 'REJECTED');

-- One row: the last delivery, by id, up to which every destination is erased. An index of those that are left would cost
-- every send.
CREATE TABLE erased_destinations (last_delivery_id uuid NOT NULL);
INSERT INTO erased_destinations (last_delivery_id) VALUES ('00000000-0000-0000-0000-000000000000');
