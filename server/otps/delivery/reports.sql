-- lock_outbox
SELECT 1
FROM outbox
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s
FOR UPDATE;

-- lock_otp
SELECT status
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id >= %(first_otp_id)s AND otp_id = (
    SELECT otp_id
    FROM deliveries
    WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s AND otp_id >= %(first_otp_id)s
)
FOR NO KEY UPDATE;

-- lock_delivery
SELECT {delivery}
FROM deliveries
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s AND otp_id >= %(first_otp_id)s
FOR NO KEY UPDATE;

-- write_report
UPDATE deliveries
SET status = %(status)s, refunded = %(refunded)s, failure_reason = %(failure_reason)s, update_time = %(update_time)s,
    earlier_changes = %(earlier_changes)s
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s AND otp_id >= %(first_otp_id)s;

-- fall_back
UPDATE outbox
SET fall_back_time = %(now)s, next_attempt_time = 'infinity'
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s AND fallbacks_sealed IS NOT NULL;

-- remove_from_outbox
DELETE FROM outbox
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s
    AND NOT (%(keep)s AND fallbacks_sealed IS NOT NULL);

-- find_deliveries
SELECT delivery_id
FROM deliveries
WHERE delivery_id = ANY(%(delivery_ids)s);
