-- count_top_ups_to_resolve
SELECT count(*) FROM top_ups WHERE status = 'REVIEW' OR NOT flags <@ resolved_flags;

-- count_events_to_replay
SELECT count(*) FROM stripe_events WHERE status = 'DEAD';
