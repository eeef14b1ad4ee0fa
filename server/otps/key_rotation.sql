-- find_destinations
-- Regardless of their key, so that every batch takes equally long.
SELECT organization_id, delivery_id, destination_sealed
FROM deliveries
WHERE (delivery_id, organization_id) > (%(after_delivery_id)s, %(after_organization_id)s)
    AND destination_sealed IS NOT NULL
ORDER BY delivery_id, organization_id
LIMIT %(limit)s;

-- write_destination
-- Only if it still has the value that was read: retention may have erased it meanwhile.
UPDATE deliveries
SET destination_sealed = %(resealed)s
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s AND otp_id >= %(first_otp_id)s
    AND destination_sealed = %(sealed)s;

-- find_fallbacks
SELECT organization_id, delivery_id, fallbacks_sealed
FROM outbox
WHERE (organization_id, delivery_id) > (%(after_organization_id)s, %(after_delivery_id)s)
    AND fallbacks_sealed IS NOT NULL
ORDER BY organization_id, delivery_id
LIMIT %(limit)s;

-- write_fallbacks
UPDATE outbox
SET fallbacks_sealed = %(resealed)s
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s AND fallbacks_sealed = %(sealed)s;

-- count_destinations
-- An encrypted value begins with the length of its key's id in one byte, then the id.
SELECT substring(destination_sealed FROM 2 FOR get_byte(destination_sealed, 0)), count(*)
FROM deliveries
WHERE destination_sealed IS NOT NULL
GROUP BY 1;

-- count_fallbacks
SELECT substring(fallbacks_sealed FROM 2 FOR get_byte(fallbacks_sealed, 0)), count(*)
FROM outbox
WHERE fallbacks_sealed IS NOT NULL
GROUP BY 1;

-- count_live_otps
SELECT convert_to(code_key_id, 'UTF8'), count(*)
FROM otps
WHERE status = 'PENDING' AND expire_time > %(now)s
GROUP BY 1;

-- find_digest_uses
-- The fingerprint of a send begins as an encrypted value.
SELECT substring(fingerprint FROM 2 FOR get_byte(fingerprint, 0)), max(create_time)
FROM requests
WHERE rpc IN ('SendOtp', 'ResendOtp') AND fingerprint <> ''
GROUP BY 1;
