-- outside a transaction
-- Counts what waits for a person, for the alerts, without reading what does not: almost always nothing waits.
DROP INDEX CONCURRENTLY IF EXISTS top_ups_to_resolve;
CREATE INDEX CONCURRENTLY top_ups_to_resolve ON top_ups (create_time)
WHERE status = 'REVIEW' OR NOT flags <@ resolved_flags;
DROP INDEX CONCURRENTLY IF EXISTS dead_stripe_events;
CREATE INDEX CONCURRENTLY dead_stripe_events ON stripe_events (create_time) WHERE status = 'DEAD';
