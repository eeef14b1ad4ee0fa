-- find_expired
-- Not of a stream that is further behind: it is on a worker that was away when find_behind asked, and comes next time.
-- Each stream's OTPs by their key. FETCH keeps PostgreSQL from reading the OTPs of all organizations first, and what
-- expired at the time of the last row is complete.
SELECT stream.organization_id, stream.expired_until, expired.expire_time, expired.otp_id
FROM event_streams AS stream
CROSS JOIN LATERAL (
    SELECT otp.expire_time, otp.otp_id
    FROM otps AS otp
    WHERE otp.organization_id = stream.organization_id AND otp.otp_id >= %(first_otp_id)s AND otp.status = 'PENDING'
        AND otp.expire_time > stream.expired_until AND otp.expire_time <= %(until)s
    ORDER BY otp.expire_time
    FETCH FIRST (%(limit)s) ROWS WITH TIES
) AS expired
WHERE stream.is_on AND stream.expired_until >= %(oldest)s AND stream.organization_id <> ALL(%(without)s::text[])
ORDER BY expired.expire_time
FETCH FIRST (%(limit)s) ROWS WITH TIES;

-- find_behind
SELECT organization_id, expired_until
FROM event_streams
WHERE is_on AND expired_until < %(before)s AND organization_id <> ALL(%(without)s::text[])
ORDER BY expired_until
LIMIT %(limit)s;

-- lock_expired
SELECT organization_id, otp_id, purpose
FROM otps
WHERE (organization_id, otp_id) IN (
        SELECT organization_id, otp_id
        FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS expired (organization_id, otp_id)
    )
    AND otp_id >= %(first_otp_id)s
    AND organization_id = ANY(%(organization_ids)s) -- shard
    AND status = 'PENDING'
ORDER BY organization_id, otp_id
FOR NO KEY UPDATE;

-- lock_streams
-- Only those that no other replica has advanced.
SELECT organization_id, last_number
FROM event_streams
WHERE organization_id = ANY(%(organization_ids)s) AND is_on
    AND expired_until = (%(since)s::timestamptz[])[array_position(%(organization_ids)s::text[], organization_id)]
ORDER BY organization_id
FOR NO KEY UPDATE;

-- advance
-- ANY confines every plan to these streams. A join, as a shorter form brought a server of Citus 13.2.2 down.
UPDATE event_streams
SET expired_until = advanced.expired_until,
    last_number = advanced.last_number
FROM unnest(%(organization_ids)s::text[], %(until)s::timestamptz[], %(last_numbers)s::bigint[])
    AS advanced (organization_id, expired_until, last_number)
WHERE event_streams.organization_id = ANY(%(organization_ids)s)
    AND event_streams.organization_id = advanced.organization_id;
