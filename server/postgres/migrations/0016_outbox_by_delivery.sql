-- Batches find their rows by the ids of the deliveries alone: organizations and deliveries as two arrays would be looked
-- up in every combination. The ids are ordered by time, so that new ones go to the index's end.
ALTER TABLE outbox DROP CONSTRAINT outbox_pkey;
ALTER TABLE outbox ADD CONSTRAINT outbox_pkey PRIMARY KEY (delivery_id, organization_id);
