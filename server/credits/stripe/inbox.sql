-- insert_event
INSERT INTO stripe_events (event_id, type, payload, status, next_attempt_time, create_time)
VALUES (%(event_id)s, %(type)s, %(payload)s, %(status)s, %(now)s, %(now)s)
ON CONFLICT (event_id) DO NOTHING;

-- find_event
SELECT event_id, payload, status, attempts
FROM stripe_events
WHERE event_id = %(event_id)s;

-- claim_event
-- next_attempt_time is the lease: after a worker's crash another one claims the event, after a longer pause each time.
UPDATE stripe_events
SET attempts = attempts + 1, next_attempt_time = %(next_attempt_time)s
WHERE event_id = %(event_id)s
    AND status = 'RECEIVED'
    AND attempts = %(attempts)s
    AND next_attempt_time <= %(now)s;

-- find_due_events
SELECT event_id
FROM stripe_events
WHERE status = 'RECEIVED' AND next_attempt_time <= %(now)s
ORDER BY next_attempt_time
LIMIT %(limit)s;

-- finish_event
UPDATE stripe_events
SET status = %(status)s
WHERE event_id = %(event_id)s AND status = 'RECEIVED';

-- revive_event
UPDATE stripe_events
SET status = 'RECEIVED', attempts = 0, next_attempt_time = %(now)s
WHERE event_id = %(event_id)s AND status <> 'REJECTED';

-- find_old_events
SELECT event_id
FROM stripe_events
WHERE status IN ('DONE', 'REJECTED') AND create_time < %(before)s
ORDER BY create_time
LIMIT %(limit)s;

-- remove_events
-- The status is checked again: an operator may have set the event to RECEIVED with a replay meanwhile.
DELETE FROM stripe_events
WHERE event_id = ANY(%(event_ids)s) AND status IN ('DONE', 'REJECTED');
