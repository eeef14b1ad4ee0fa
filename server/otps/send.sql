-- find_recent_sends
SELECT organization_id, destination_digest, create_time, purpose
FROM unnest(%(organization_ids)s::text[], %(digests)s::bytea[]) AS wanted (organization_id, destination_digest)
JOIN deliveries USING (organization_id, destination_digest)
WHERE create_time > %(since)s AND otp_id >= %(first_otp_id)s
    AND deliveries.organization_id = ANY(%(organization_ids)s) -- shard
ORDER BY create_time;

-- accept_unchanged
-- Accepts a lone send on a remembered account in one statement. Writes nothing and returns no row when the account is
-- not as remembered or locked, or the request_id or a recent send to the destination exists. Both would have changed the
-- account too, so that what this statement saw before it had the lock still holds.
WITH unchanged AS MATERIALIZED (
    SELECT organization_id
    FROM accounts
    WHERE organization_id = %(organization_id)s
        AND (
            available_credits, last_sequence, low_balance_threshold, low_balance_since, window_start_time,
            window_send_count, alert_email, settings_version
        ) IS NOT DISTINCT FROM (
            %(expected_available_credits)s::bigint, %(expected_last_sequence)s::bigint,
            %(expected_low_balance_threshold)s::bigint, %(expected_low_balance_since)s::timestamptz,
            %(expected_window_start_time)s::timestamptz, %(expected_window_send_count)s::bigint,
            %(expected_alert_email)s::text, %(expected_settings_version)s::bigint
        )
        AND suspend_time IS NULL
        AND NOT EXISTS (
            SELECT
            FROM requests
            WHERE organization_id = %(organization_id)s AND request_id = %(request_id)s
        )
        AND NOT EXISTS (
            SELECT
            FROM deliveries
            WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(digests)s)
                AND create_time > %(since)s AND otp_id >= %(first_otp_id)s
        )
    FOR NO KEY UPDATE SKIP LOCKED
), balance AS (
    UPDATE accounts
    SET available_credits = %(balance_after)s,
        last_sequence = %(ledger_sequence)s,
        low_balance_since = %(low_balance_since)s,
        window_start_time = %(window_start_time)s,
        window_send_count = %(window_send_count)s
    FROM unchanged
    WHERE accounts.organization_id = unchanged.organization_id
), entry AS (
    INSERT INTO ledger_entries (
        organization_id, sequence, kind, credits, balance_after, reference_id, reason, created_by, create_time
    )
    SELECT new.organization_id, ledger_sequence, 'SEND', -credits, balance_after, delivery_id, '', '', %(now)s
    FROM {new_entry:row} AS new ({new_entry})
    JOIN unchanged ON true
), otp AS (
    INSERT INTO otps (
    organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, expire_time, to_phone, create_time
)
    SELECT {new_otp:new}, %(now)s
    FROM {new_otp:row} AS new ({new_otp})
    JOIN unchanged ON true
), request AS (
    INSERT INTO requests ({new_request}, answer_id, create_time)
    SELECT {new_request:new}, delivery_id, %(now)s
    FROM {requested:row} AS new ({requested})
    JOIN unchanged ON true
), job AS (
    INSERT INTO outbox ({new_outbox}, next_attempt_time)
    SELECT {new_outbox:new}, %(lease_expire_time)s
    FROM {new_outbox:row} AS new ({new_outbox})
    JOIN unchanged ON true
), spent AS (
    INSERT INTO unverified_credits (organization_id, area, window_start_time, credits)
    SELECT organization_id, area, window_start_time, %(credits)s::bigint
    FROM unnest(%(spent_areas)s::text[], %(window_start_times)s::timestamptz[]) AS spent (area, window_start_time)
    JOIN unchanged ON true
    ON CONFLICT (organization_id, area) DO UPDATE
    SET credits = excluded.credits + CASE
            WHEN unverified_credits.window_start_time = excluded.window_start_time THEN unverified_credits.credits
            ELSE 0
        END,
        window_start_time = excluded.window_start_time
)
INSERT INTO deliveries ({new_delivery}, create_time, update_time)
SELECT {new_delivery:new}, %(now)s, %(now)s
FROM {new_delivery:row} AS new ({new_delivery})
JOIN unchanged ON true
RETURNING delivery_id;

-- insert_entries
-- A send of a test organization costs nothing.
INSERT INTO ledger_entries (
    organization_id, sequence, kind, credits, balance_after, reference_id, reason, created_by, create_time
)
SELECT organization_id, ledger_sequence, 'SEND', -credits, balance_after, delivery_id, '', '', %(now)s
FROM {new_entry:rows} AS new ({new_entry})
WHERE credits <> 0;

-- insert_otps
-- A resend's OTP exists.
INSERT INTO otps (
    organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, expire_time, to_phone, create_time
)
SELECT {new_otp}, %(now)s
FROM {maybe_new_otp:rows} AS new ({maybe_new_otp})
WHERE is_new;

-- insert_deliveries
INSERT INTO deliveries ({new_delivery}, create_time, update_time)
SELECT {new_delivery}, %(now)s, %(now)s
FROM {new_delivery:rows} AS new ({new_delivery});

-- insert_requests
-- A fallback was requested by no call.
INSERT INTO requests ({new_request}, answer_id, create_time)
SELECT {new_request}, delivery_id, %(now)s
FROM {requested:rows} AS new ({requested})
WHERE fingerprint <> '';

-- insert_outbox
INSERT INTO outbox ({new_outbox}, next_attempt_time)
SELECT {new_outbox}, %(lease_expire_time)s
FROM {new_outbox:rows} AS new ({new_outbox});
