-- find_longest_due
-- Without locks, and no more than `limit` rows of the index by time.
SELECT organization_id, delivery_id
FROM outbox
WHERE next_attempt_time <= %(now)s
ORDER BY next_attempt_time
LIMIT %(limit)s;

-- find_latest_due
SELECT organization_id, delivery_id
FROM outbox
WHERE next_attempt_time <= %(now)s
ORDER BY next_attempt_time DESC
LIMIT %(limit)s;

-- lock_due_deliveries
-- Skips deliveries that another replica is claiming. A code that was verified came with one of the OTP's messages.
SELECT outbox.fallbacks_sealed, outbox.attempts,
    otp.status = 'VERIFIED' AND (
        SELECT count(*) FROM deliveries AS other
        WHERE other.organization_id = outbox.organization_id AND other.otp_id = outbox.otp_id
            AND other.organization_id = ANY(%(organization_ids)s) -- shard
            AND other.status IN ('SENT', 'DELIVERED', 'UNKNOWN')
    ) = 0 AS has_arrived,
    {delivery:delivery}, {otp:otp}
FROM outbox
JOIN deliveries AS delivery ON delivery.organization_id = outbox.organization_id
    AND delivery.delivery_id = outbox.delivery_id AND delivery.otp_id = outbox.otp_id
JOIN otps AS otp ON otp.organization_id = outbox.organization_id AND otp.otp_id = outbox.otp_id
WHERE outbox.delivery_id = ANY(%(delivery_ids)s)
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND delivery.organization_id = ANY(%(organization_ids)s) -- shard
    AND otp.organization_id = ANY(%(organization_ids)s) -- shard
    AND outbox.next_attempt_time <= %(now)s
ORDER BY outbox.next_attempt_time
FOR UPDATE OF outbox SKIP LOCKED;

-- set_lease
UPDATE outbox
SET next_attempt_time = %(lease_expire_time)s
WHERE delivery_id = ANY(%(delivery_ids)s)
    AND organization_id = ANY(%(organization_ids)s) -- shard
    AND next_attempt_time < %(lease_expire_time)s;

-- renew_leases
-- Only while this replica holds the lease: a replica that took over has changed next_attempt_time.
UPDATE outbox
SET next_attempt_time = %(new_lease_expire_time)s
FROM unnest(
    %(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(otp_ids)s::uuid[], %(lease_expire_times)s::timestamptz[]
) AS leased (organization_id, delivery_id, otp_id, lease_expire_time)
JOIN otps USING (organization_id, otp_id)
WHERE outbox.delivery_id = ANY(%(delivery_ids)s::uuid[])
    AND outbox.delivery_id = leased.delivery_id
    AND outbox.organization_id = leased.organization_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND (outbox.next_attempt_time = leased.lease_expire_time) IS TRUE
    AND otps.otp_id >= %(first_otp_id)s
    AND otps.organization_id = ANY(%(organization_ids)s) -- shard
RETURNING outbox.organization_id, outbox.delivery_id, otps.status;

-- find_due_fallbacks
SELECT organization_id, delivery_id
FROM outbox
WHERE fall_back_time <= %(now)s
ORDER BY fall_back_time
LIMIT %(limit)s;

-- lock_due_fallbacks
-- Under the account's lock, so that no other replica has them.
SELECT outbox.fallbacks_sealed, outbox.attempts, false AS has_arrived,
    {delivery:delivery}, {otp:otp}
FROM outbox
JOIN deliveries AS delivery ON delivery.organization_id = outbox.organization_id
    AND delivery.delivery_id = outbox.delivery_id
JOIN otps AS otp ON otp.organization_id = outbox.organization_id AND otp.otp_id = outbox.otp_id
WHERE outbox.organization_id = %(organization_id)s
    AND delivery.organization_id = %(organization_id)s
    AND otp.organization_id = %(organization_id)s
    AND outbox.delivery_id = ANY(%(delivery_ids)s)
    AND outbox.fall_back_time <= %(now)s
FOR UPDATE OF outbox;
