-- read_unverified
SELECT organization_id, area, window_start_time, credits
FROM unnest(%(organization_ids)s::text[], %(areas)s::text[]) AS wanted (organization_id, area)
JOIN unverified_credits USING (organization_id, area)
WHERE true
    AND unverified_credits.organization_id = ANY(%(organization_ids)s) -- shard
;

-- add_unverified
-- The accounts are locked, so no other transaction begins a window. A verification may subtract at the same time.
INSERT INTO unverified_credits ({spent})
SELECT {spent:spent}
FROM {spent:rows} AS spent ({spent})
ON CONFLICT (organization_id, area) DO UPDATE
SET credits = excluded.credits + CASE
        WHEN unverified_credits.window_start_time = excluded.window_start_time THEN unverified_credits.credits
        ELSE 0
    END,
    window_start_time = excluded.window_start_time;

-- mark_otps_to_phones
UPDATE otps
SET to_phone = true
FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS sent (organization_id, otp_id)
WHERE otps.organization_id = sent.organization_id
    AND otps.organization_id = ANY(%(organization_ids)s) -- shard
    AND otps.otp_id = sent.otp_id AND otps.otp_id >= %(first_otp_id)s;

-- find_sends_of_otps
-- Not those that were refunded, which subtracted them.
SELECT organization_id, areas, create_time, credits
FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS verified (organization_id, otp_id)
JOIN deliveries USING (organization_id, otp_id)
WHERE areas <> '' AND NOT refunded AND deliveries.otp_id >= %(first_otp_id)s
    AND deliveries.organization_id = ANY(%(organization_ids)s) -- shard
;

-- lock_unverified
-- In the order in which add_unverified locks them, so that no two transactions deadlock.
SELECT organization_id, area, window_start_time
FROM unverified_credits
WHERE (organization_id, area) IN (
        SELECT organization_id, area
        FROM unnest(%(organization_ids)s::text[], %(areas)s::text[]) AS wanted (organization_id, area)
    )
    AND organization_id = ANY(%(organization_ids)s) -- shard
ORDER BY organization_id COLLATE "C", area COLLATE "C"
FOR NO KEY UPDATE;

-- subtract_unverified
UPDATE unverified_credits
SET credits = greatest(0, unverified_credits.credits - subtracted.credits)
FROM unnest(%(organization_ids)s::text[], %(areas)s::text[], %(credits)s::bigint[])
    AS subtracted (organization_id, area, credits)
WHERE unverified_credits.organization_id = subtracted.organization_id
    AND unverified_credits.organization_id = ANY(%(organization_ids)s) -- shard
    AND unverified_credits.area = subtracted.area;
