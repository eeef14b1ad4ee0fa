-- pgbench's script: the statements of one plain send and of its outcome, without a server or a driver.
-- No round trip is spent on ids: the locking statement makes them.
BEGIN;
SELECT available_credits - 1 AS balance_after, last_sequence + 1 AS sequence, uuidv7() AS otp_id,
    uuidv7() AS delivery_id, gen_random_uuid() AS request_id, sha256(uuidv7()::text::bytea) AS digest
FROM accounts
WHERE organization_id = 'bare'
FOR NO KEY UPDATE \gset
SELECT answer_id FROM requests WHERE organization_id = 'bare' AND request_id = :request_id::uuid;
SELECT count(*) FROM deliveries
WHERE organization_id = 'bare' AND destination_digest = :digest::bytea AND create_time > now() - interval '1 day';
UPDATE accounts SET available_credits = :balance_after, last_sequence = :sequence,
    window_send_count = window_send_count + 1
WHERE organization_id = 'bare';
INSERT INTO ledger_entries (organization_id, sequence, kind, credits, balance_after, reference_id, create_time)
VALUES ('bare', :sequence, 'SEND', -1, :balance_after, :delivery_id::uuid, now());
INSERT INTO otps (
    organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, create_time, expire_time
)
VALUES (
    'bare', :otp_id::uuid, 'login', 'EMAIL', 'id-ID', :digest::bytea, 'bench', 6, '', '', '{}', 5, now(),
    now() + interval '10 minutes'
);
INSERT INTO deliveries (
    organization_id, delivery_id, otp_id, purpose, channel, destination_digest, destination_sealed,
    masked_destination, credits, ledger_sequence, balance_after, create_time, update_time
)
VALUES (
    'bare', :delivery_id::uuid, :otp_id::uuid, 'login', 'EMAIL', :digest::bytea, :digest::bytea,
    'u***@example.com', 1, :sequence, :balance_after, now(), now()
);
INSERT INTO requests (organization_id, request_id, rpc, fingerprint, answer_id, create_time)
VALUES ('bare', :request_id::uuid, 'SendOtp', :digest::bytea, :delivery_id::uuid, now());
INSERT INTO outbox (organization_id, delivery_id, otp_id, next_attempt_time)
VALUES ('bare', :delivery_id::uuid, :otp_id::uuid, now() + interval '1 minute');
COMMIT;
BEGIN;
DELETE FROM outbox WHERE organization_id = 'bare' AND delivery_id = :delivery_id::uuid;
UPDATE deliveries SET status = 'SENT', provider = 'console', update_time = now()
WHERE organization_id = 'bare' AND delivery_id = :delivery_id::uuid AND status = 'QUEUED';
COMMIT;
