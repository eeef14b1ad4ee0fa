-- read_otp
SELECT organization_id, otp_id, purpose, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, status, attempts, max_attempts, create_time, expire_time, verify_time, verify_request_id,
    to_phone
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id = %(otp_id)s;

-- list_otps
SELECT organization_id, otp_id, purpose, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, status, attempts, max_attempts, create_time, expire_time, verify_time, verify_request_id,
    to_phone
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id < %(before_otp_id)s
ORDER BY otp_id DESC
LIMIT %(limit)s;

-- read_deliveries
SELECT organization_id, delivery_id, otp_id, request_id, request_fingerprint, purpose, channel, destination_digest,
    destination_sealed, masked_destination, credits, ledger_sequence, balance_after, status, refunded, failure_reason,
    create_time, areas
FROM deliveries
WHERE organization_id = %(organization_id)s AND otp_id = ANY(%(otp_ids)s)
ORDER BY delivery_id;

-- cancel_otp
UPDATE otps
SET status = 'CANCELED'
WHERE organization_id = %(organization_id)s AND otp_id = %(otp_id)s AND status = 'PENDING' AND expire_time > %(now)s;
