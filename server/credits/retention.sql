-- find_old_notices
SELECT organization_id, notice_id
FROM notices
WHERE status <> 'PENDING' AND create_time < %(before)s
ORDER BY create_time
LIMIT %(limit)s;

-- remove_notice
DELETE FROM notices
WHERE organization_id = %(organization_id)s AND notice_id = %(notice_id)s;

-- find_old_events
SELECT event_id
FROM stripe_events
WHERE status IN ('DONE', 'REJECTED') AND create_time < %(before)s
ORDER BY create_time
LIMIT %(limit)s;

-- remove_events
-- One that somebody replays just now is no longer done.
DELETE FROM stripe_events
WHERE event_id = ANY(%(event_ids)s) AND status IN ('DONE', 'REJECTED');
