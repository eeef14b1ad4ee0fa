-- read_progress
SELECT last_delivery_id
FROM erased_destinations;

-- find_next_deliveries
-- A range of the primary key, erased or not, so that every batch takes equally long.
SELECT organization_id, delivery_id
FROM deliveries
WHERE delivery_id > %(last_delivery_id)s AND delivery_id < %(end_id)s
ORDER BY delivery_id
LIMIT %(limit)s;

-- erase_destinations
UPDATE deliveries
SET destination_sealed = NULL
WHERE organization_id = %(organization_id)s AND delivery_id = ANY(%(ids)s) AND destination_sealed IS NOT NULL;

-- advance_progress
-- Never back: another replica may have advanced further.
UPDATE erased_destinations
SET last_delivery_id = %(last_delivery_id)s
WHERE last_delivery_id < %(last_delivery_id)s;

-- find_old_otps
-- By their oldest deliveries: the primary key is ordered by time. The periodic job sends those that are still QUEUED.
SELECT organization_id, otp_id, delivery_id
FROM deliveries
WHERE delivery_id > %(last_delivery_id)s AND delivery_id < %(end_id)s AND status <> 'QUEUED'
ORDER BY delivery_id
LIMIT %(limit)s;

-- commit_asynchronously
-- The COMMIT does not wait for the disk: a later run repeats a removal that a crash undoes.
SELECT set_config('synchronous_commit', 'off', true);

-- lock_otps
-- Only OTPs without a QUEUED delivery: their deliveries have no rows in the outbox.
SELECT organization_id, otp_id
FROM otps
WHERE (organization_id, otp_id) IN (
        SELECT organization_id, otp_id
        FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS old (organization_id, otp_id)
    )
    AND organization_id = ANY(%(organization_ids)s) -- shard
    AND NOT EXISTS (
        SELECT
        FROM deliveries
        WHERE deliveries.organization_id = otps.organization_id AND deliveries.otp_id = otps.otp_id
            AND deliveries.status = 'QUEUED'
    )
FOR UPDATE OF otps SKIP LOCKED;

-- remove_deliveries
DELETE FROM deliveries
USING unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS old (organization_id, otp_id)
WHERE deliveries.organization_id = old.organization_id
    AND deliveries.organization_id = ANY(%(organization_ids)s) -- shard
    AND deliveries.otp_id = old.otp_id;

-- remove_otps
DELETE FROM otps
USING unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS old (organization_id, otp_id)
WHERE otps.organization_id = old.organization_id
    AND otps.organization_id = ANY(%(organization_ids)s) -- shard
    AND otps.otp_id = old.otp_id;

-- find_old_guess_budgets
SELECT organization_id, destination_digest, last_guess_time
FROM guess_budgets
WHERE last_guess_time >= %(after)s AND last_guess_time < %(before)s
ORDER BY last_guess_time
LIMIT %(limit)s;

-- remove_guess_budgets
-- Skips a locked row: a guess is changing it.
DELETE FROM guess_budgets
WHERE organization_id = %(organization_id)s AND destination_digest IN (
    SELECT destination_digest
    FROM guess_budgets
    WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(ids)s)
        AND last_guess_time < %(before)s
    FOR UPDATE SKIP LOCKED
);

-- find_old_unverified
SELECT organization_id, area, window_start_time
FROM unverified_credits
WHERE window_start_time >= %(after)s AND window_start_time < %(before)s
ORDER BY window_start_time
LIMIT %(limit)s;

-- remove_unverified
-- Skips a locked row: a send is counted in it, in a new window.
DELETE FROM unverified_credits
WHERE organization_id = %(organization_id)s AND area IN (
    SELECT area
    FROM unverified_credits
    WHERE organization_id = %(organization_id)s AND area = ANY(%(ids)s)
        AND window_start_time < %(before)s
    FOR UPDATE SKIP LOCKED
);

-- find_old_suppressions
SELECT organization_id, destination_digest, expire_time
FROM suppressions
WHERE expire_time >= %(after)s AND expire_time < %(before)s
ORDER BY expire_time
LIMIT %(limit)s;

-- remove_suppressions
DELETE FROM suppressions
WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(ids)s) AND expire_time < %(before)s;
