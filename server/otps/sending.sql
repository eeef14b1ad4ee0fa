-- find_requests
-- Joined pair by pair: two ANY conditions would probe the index for every organization with every request_id.
SELECT organization_id, delivery_id, otp_id, request_id, request_fingerprint, purpose, channel, destination_digest,
    destination_sealed, masked_destination, credits, ledger_sequence, balance_after, status, refunded, failure_reason,
    create_time, areas
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
    WHERE organization_id = %(organization_id)s AND destination_digest = %(digest)s AND create_time > %(since)s
))::integer;

-- find_otp_statuses
SELECT organization_id, otp_id, status
FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS wanted (organization_id, otp_id)
JOIN otps USING (organization_id, otp_id)
WHERE true
    AND organization_id = ANY(%(organization_ids)s) -- shard
;
