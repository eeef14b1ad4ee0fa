-- find_due
-- Without locks and over the whole outbox, which is small: it holds only what no provider has settled.
SELECT organization_id
FROM outbox
WHERE next_attempt_time <= %(now)s
GROUP BY organization_id
ORDER BY min(next_attempt_time)
LIMIT %(limit)s;

-- lock_due
-- What another replica is claiming is left to it.
SELECT outbox.fallbacks_sealed, outbox.attempts,
    delivery.organization_id, delivery.delivery_id, delivery.otp_id, delivery.request_id, delivery.request_fingerprint,
    delivery.purpose, delivery.channel, delivery.destination_digest, delivery.destination_sealed,
    delivery.masked_destination, delivery.credits, delivery.ledger_sequence, delivery.balance_after, delivery.status,
    delivery.refunded, delivery.failure_reason, delivery.create_time, delivery.areas,
    otp.organization_id, otp.otp_id, otp.purpose, otp.locale, otp.destination_digest, otp.code_key_id, otp.code_length,
    otp.context_digest, otp.web_otp_domain, otp.metadata, otp.status, otp.attempts, otp.max_attempts, otp.create_time,
    otp.expire_time, otp.verify_time, otp.verify_request_id, otp.to_phone
FROM outbox
JOIN deliveries AS delivery ON delivery.organization_id = outbox.organization_id
    AND delivery.delivery_id = outbox.delivery_id
JOIN otps AS otp ON otp.organization_id = outbox.organization_id AND otp.otp_id = outbox.otp_id
WHERE outbox.organization_id = %(organization_id)s
    AND delivery.organization_id = %(organization_id)s
    AND otp.organization_id = %(organization_id)s
    AND outbox.next_attempt_time <= %(now)s
ORDER BY outbox.next_attempt_time
LIMIT %(limit)s
FOR UPDATE OF outbox SKIP LOCKED;

-- lease
UPDATE outbox
SET next_attempt_time = %(lease_expire_time)s
WHERE organization_id = %(organization_id)s AND delivery_id = ANY(%(delivery_ids)s);

-- renew
-- Only of those that nobody else has taken over: whoever does moves next_attempt_time.
UPDATE outbox
SET next_attempt_time = %(lease_expire_time)s
FROM unnest(
    %(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(otp_ids)s::uuid[], %(held_until)s::timestamptz[]
) AS held (organization_id, delivery_id, otp_id, held_until)
JOIN otps USING (organization_id, otp_id)
WHERE outbox.organization_id = held.organization_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND outbox.delivery_id = held.delivery_id
    AND outbox.next_attempt_time = held.held_until
    AND otps.organization_id = ANY(%(organization_ids)s) -- shard
RETURNING outbox.organization_id, outbox.delivery_id, otps.status;
