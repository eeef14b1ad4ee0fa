-- find_requests
-- Joined pair by pair: two ANY conditions would probe the index for every organization with every request_id.
SELECT {delivery:deliveries}
FROM unnest(%(organization_ids)s::text[], %(request_ids)s::uuid[]) AS wanted (organization_id, request_id)
JOIN deliveries USING (organization_id, request_id)
WHERE true
    AND organization_id = ANY(%(organization_ids)s) -- shard
;

-- find_recent_sends
SELECT organization_id, destination_digest, create_time, purpose
FROM unnest(%(organization_ids)s::text[], %(digests)s::bytea[]) AS wanted (organization_id, destination_digest)
JOIN deliveries USING (organization_id, destination_digest)
WHERE create_time > %(since)s
    AND organization_id = ANY(%(organization_ids)s) -- shard
ORDER BY create_time;

-- expect_no_sends
-- Divides by zero where there are some.
SELECT 1 / (NOT EXISTS (
    SELECT
    FROM deliveries
    WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(digests)s) AND create_time > %(since)s
))::integer;

-- insert_otps
INSERT INTO otps ({new_otp})
SELECT {new_otp}
FROM {new_otp:rows} AS new ({new_otp});

-- insert_deliveries
INSERT INTO deliveries ({new_delivery}, create_time, update_time)
SELECT {new_delivery}, %(now)s, %(now)s
FROM {new_delivery:rows} AS new ({new_delivery});

-- insert_outbox
INSERT INTO outbox ({new_outbox}, next_attempt_time)
SELECT {new_outbox}, %(lease_expire_time)s
FROM {new_outbox:rows} AS new ({new_outbox});
