-- outside a transaction
-- For the cap of a month: what automatic top-ups have bought in it.
DROP INDEX CONCURRENTLY IF EXISTS automatic_top_ups_by_month;
CREATE INDEX CONCURRENTLY automatic_top_ups_by_month ON top_ups (organization_id, paid_time) WHERE is_automatic;
