-- add
INSERT INTO suppressions (
    organization_id, suppression_id, destination_digest, masked_destination, reason, create_time, expire_time
)
VALUES (
    %(organization_id)s, %(suppression_id)s, %(destination_digest)s, %(masked_destination)s, %(reason)s, %(now)s,
    %(expire_time)s
)
ON CONFLICT (organization_id, destination_digest) DO UPDATE
SET suppression_id = EXCLUDED.suppression_id, reason = EXCLUDED.reason, create_time = EXCLUDED.create_time,
    expire_time = EXCLUDED.expire_time;

-- find_organization
-- By the first column of the primary key; a report does not know the organization.
SELECT organization_id
FROM deliveries
WHERE delivery_id = %(delivery_id)s;

-- find_new
SELECT organization_id, destination_digest
FROM suppressions
WHERE create_time >= %(since)s;

-- is_suppressed
SELECT 1
FROM suppressions
WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(digests)s) AND expire_time > %(now)s;

-- page
SELECT suppression_id, masked_destination, reason, create_time, expire_time
FROM suppressions
WHERE organization_id = %(organization_id)s AND suppression_id < %(before_id)s AND expire_time > %(now)s
ORDER BY suppression_id DESC
LIMIT %(limit)s;

-- lift
DELETE FROM suppressions
WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(digests)s);
