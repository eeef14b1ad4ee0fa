-- lock_account
SELECT available_credits, last_sequence, low_balance_threshold
FROM accounts
WHERE organization_id = %(organization_id)s
FOR NO KEY UPDATE;

-- find_request
SELECT answer_id
FROM requests
WHERE organization_id = %(organization_id)s AND request_id = %(request_id)s;

-- count_recent_sends
SELECT count(*), max(create_time)
FROM deliveries
WHERE organization_id = %(organization_id)s AND destination_digest = %(destination_digest)s
    AND create_time > %(since)s;

-- charge_credits
UPDATE accounts
SET available_credits = available_credits - %(credits)s,
    last_sequence = last_sequence + 1,
    window_send_count = window_send_count + 1
WHERE organization_id = %(organization_id)s;

-- insert_entry
INSERT INTO ledger_entries (
    organization_id, sequence, kind, credits, balance_after, reference_id, create_time
)
VALUES (
    %(organization_id)s, %(sequence)s, 'SEND', -%(credits)s::bigint, %(balance_after)s, %(delivery_id)s, %(now)s
);

-- insert_otp
INSERT INTO otps (
    organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, create_time, expire_time
)
VALUES (
    %(organization_id)s, %(otp_id)s, %(purpose)s, %(channel)s, %(locale)s, %(destination_digest)s, %(code_key_id)s, 6,
    '', '', jsonb_build_object(), 5, %(now)s, %(expire_time)s
);

-- insert_delivery
INSERT INTO deliveries (
    organization_id, delivery_id, otp_id, purpose, channel, destination_digest, destination_sealed,
    masked_destination, credits, ledger_sequence, balance_after, create_time, update_time
)
VALUES (
    %(organization_id)s, %(delivery_id)s, %(otp_id)s, %(purpose)s, %(channel)s, %(destination_digest)s,
    %(destination_sealed)s, %(masked_destination)s, %(credits)s, %(sequence)s, %(balance_after)s, %(now)s, %(now)s
);

-- insert_request
INSERT INTO requests (organization_id, request_id, rpc, fingerprint, answer_id, create_time)
VALUES (%(organization_id)s, %(request_id)s, 'SendOtp', %(request_fingerprint)s, %(delivery_id)s, %(now)s);

-- insert_outbox
INSERT INTO outbox (organization_id, delivery_id, otp_id, next_attempt_time)
VALUES (%(organization_id)s, %(delivery_id)s, %(otp_id)s, %(expire_time)s);

-- remove_from_outbox
DELETE FROM outbox
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s;

-- record_outcome
UPDATE deliveries
SET status = 'SENT', provider = 'console', provider_message_id = %(delivery_id)s::text, update_time = %(now)s
WHERE organization_id = %(organization_id)s AND delivery_id = %(delivery_id)s AND status = 'QUEUED';

-- lock_otp
SELECT organization_id, otp_id, purpose, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, status, attempts, max_attempts, create_time, expire_time, verify_time, verify_request_id
FROM otps
WHERE organization_id = %(organization_id)s AND otp_id = %(otp_id)s
FOR NO KEY UPDATE;

-- read_guesses
SELECT wrong_guess_times
FROM guess_budgets
WHERE organization_id = %(organization_id)s AND destination_digest = %(destination_digest)s
FOR NO KEY UPDATE;

-- mark_verified
UPDATE otps
SET status = 'VERIFIED', verify_time = %(now)s, verify_request_id = %(request_id)s
WHERE organization_id = %(organization_id)s AND otp_id = %(otp_id)s;

-- read_balance
SELECT available_credits, low_balance_threshold, last_sequence
FROM accounts
WHERE organization_id = %(organization_id)s;
