-- find_bound
-- Reads only the primary key: ids, newest first.
SELECT otp_id
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id < %(before_otp_id)s AND otp_id >= %(first_otp_id)s
ORDER BY otp_id DESC
OFFSET %(looked_at)s - 1
LIMIT 1;

-- find_otps
SELECT {otp}
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id < %(before_otp_id)s AND otp_id >= %(first_otp_id)s
    AND {matches}
ORDER BY otp_id DESC
LIMIT %(limit)s;

-- find_sent_to
-- No upper bound of otp_id, and no order by it: with them a plan would read all deliveries by that column's index.
SELECT DISTINCT otp_id
FROM deliveries
WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(digests)s) AND otp_id >= %(first_otp_id)s;

-- find_otps_among
SELECT {otp}
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id = ANY(%(otp_ids)s) AND otp_id >= %(first_otp_id)s
    AND {matches}
ORDER BY otp_id DESC
LIMIT %(limit)s;
