-- read_otp
SELECT {otp}
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id = %(otp_id)s;

-- list_otps
SELECT {otp}
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id < %(before_otp_id)s
ORDER BY otp_id DESC
LIMIT %(limit)s;

-- read_deliveries
SELECT {delivery}
FROM deliveries
WHERE organization_id = %(organization_id)s AND otp_id = ANY(%(otp_ids)s) AND otp_id >= %(first_otp_id)s
ORDER BY ledger_sequence;

-- read_answers
SELECT {delivery:deliveries}
FROM unnest(%(organization_ids)s::text[], %(delivery_ids)s::uuid[]) AS wanted (organization_id, delivery_id)
JOIN deliveries USING (organization_id, delivery_id)
WHERE deliveries.otp_id >= %(first_otp_id)s
    AND deliveries.organization_id = ANY(%(organization_ids)s) -- shard
;

-- lock_otp_statuses
-- In the order in which verify.sql locks them, so that no two transactions deadlock.
SELECT organization_id, otp_id, status
FROM otps
WHERE (organization_id, otp_id) IN (
        SELECT organization_id, otp_id
        FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS wanted (organization_id, otp_id)
    )
    AND otp_id >= %(first_otp_id)s
    AND organization_id = ANY(%(organization_ids)s) -- shard
ORDER BY organization_id, otp_id
FOR NO KEY UPDATE;

-- cancel_otp
UPDATE otps
SET status = 'CANCELED'
WHERE organization_id = %(organization_id)s AND otp_id = %(otp_id)s AND status = 'PENDING' AND expire_time > %(now)s;
