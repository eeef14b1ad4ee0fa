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
WHERE organization_id = %(organization_id)s AND otp_id = ANY(%(otp_ids)s)
ORDER BY delivery_id;

-- cancel_otp
UPDATE otps
SET status = 'CANCELED'
WHERE organization_id = %(organization_id)s AND otp_id = %(otp_id)s AND status = 'PENDING' AND expire_time > %(now)s;
