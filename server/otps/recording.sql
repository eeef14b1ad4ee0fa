-- insert_otps
INSERT INTO otps (
    organization_id, otp_id, purpose, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, create_time, expire_time, to_phone
)
SELECT otp.organization_id, otp.otp_id, otp.purpose, otp.locale, otp.destination_digest, otp.code_key_id,
    otp.code_length, otp.context_digest, otp.web_otp_domain, otp.metadata, otp.max_attempts, otp.create_time,
    otp.expire_time, otp.to_phone
FROM unnest(
    %(organization_ids)s::text[], %(otp_ids)s::uuid[], %(purposes)s::text[], %(locales)s::text[],
    %(destination_digests)s::bytea[], %(code_key_ids)s::text[], %(code_lengths)s::smallint[],
    %(context_digests)s::bytea[], %(web_otp_domains)s::text[], %(metadata)s::jsonb[], %(max_attempts)s::smallint[],
    %(create_times)s::timestamptz[], %(expire_times)s::timestamptz[], %(to_phones)s::boolean[]
) AS otp (
    organization_id, otp_id, purpose, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, create_time, expire_time, to_phone
);

-- insert_deliveries
INSERT INTO deliveries (
    organization_id, delivery_id, otp_id, request_id, request_fingerprint, purpose, channel, destination_digest,
    destination_sealed, masked_destination, credits, ledger_sequence, balance_after, create_time, update_time, areas
)
SELECT delivery.organization_id, delivery.delivery_id, delivery.otp_id, delivery.request_id,
    delivery.request_fingerprint, delivery.purpose, delivery.channel, delivery.destination_digest,
    delivery.destination_sealed, delivery.masked_destination, delivery.credits, delivery.ledger_sequence,
    delivery.balance_after, %(now)s, %(now)s, delivery.areas
FROM unnest(
    %(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(otp_ids)s::uuid[], %(request_ids)s::uuid[],
    %(fingerprints)s::bytea[], %(purposes)s::text[], %(channels)s::text[], %(destination_digests)s::bytea[],
    %(destinations_sealed)s::bytea[], %(masked_destinations)s::text[], %(credits)s::bigint[],
    %(ledger_sequences)s::bigint[], %(balances_after)s::bigint[], %(areas)s::text[]
) AS delivery (
    organization_id, delivery_id, otp_id, request_id, request_fingerprint, purpose, channel, destination_digest,
    destination_sealed, masked_destination, credits, ledger_sequence, balance_after, areas
);

-- insert_outbox
INSERT INTO outbox (organization_id, delivery_id, otp_id, fallbacks_sealed, next_attempt_time)
SELECT item.organization_id, item.delivery_id, item.otp_id, item.fallbacks_sealed, %(lease_expire_time)s
FROM unnest(
    %(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(otp_ids)s::uuid[], %(fallbacks_sealed)s::bytea[]
) AS item (organization_id, delivery_id, otp_id, fallbacks_sealed);
