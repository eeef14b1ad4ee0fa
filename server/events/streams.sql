-- read_last_numbers
SELECT organization_id, last_number
FROM event_streams
WHERE organization_id = ANY(%(organization_ids)s);

-- read_newest
-- No row when events are off. Its event may be removed.
SELECT stream.last_number, newest.create_time
FROM event_streams AS stream
LEFT JOIN events AS newest ON newest.organization_id = stream.organization_id AND newest.number = stream.last_number
WHERE stream.organization_id = %(organization_id)s AND stream.is_on;

-- read_events
SELECT {event}
FROM events
WHERE organization_id = %(organization_id)s AND number > %(number)s
ORDER BY number
LIMIT %(limit)s;
