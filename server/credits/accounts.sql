-- read_accounts
SELECT organization_id, available_credits, last_sequence, low_balance_threshold, low_balance_since,
    window_start_time, window_send_count, alert_email, stripe_customer_id
FROM accounts
WHERE organization_id = ANY(%(organization_ids)s);

-- lock_accounts
-- Its own statement: what the next one reads must include everything committed before the lock was ours. In the order
-- of the ids, so that two transactions never wait for each other.
SELECT organization_id, available_credits, last_sequence, low_balance_threshold, low_balance_since,
    window_start_time, window_send_count, alert_email, stripe_customer_id
FROM accounts
WHERE organization_id = ANY(%(organization_ids)s)
ORDER BY organization_id
FOR NO KEY UPDATE;

-- expect_unchanged
-- Locks the account, and divides by zero unless it is exactly as it was known. Also while somebody else has it locked:
-- who waits for a lock may wait beyond a deadline.
SELECT 1 / coalesce((
    SELECT 1
    FROM accounts
    WHERE organization_id = %(organization_id)s
        AND (
            available_credits, last_sequence, low_balance_threshold, low_balance_since, window_start_time,
            window_send_count, alert_email
        ) IS NOT DISTINCT FROM (
            %(available_credits)s::bigint, %(last_sequence)s::bigint, %(low_balance_threshold)s::bigint,
            %(low_balance_since)s::timestamptz, %(window_start_time)s::timestamptz, %(window_send_count)s::bigint,
            %(alert_email)s::text
        )
    FOR NO KEY UPDATE SKIP LOCKED
), 0);

-- create_account
INSERT INTO accounts (organization_id, low_balance_threshold, low_balance_since, window_start_time, create_time)
VALUES (%(organization_id)s, %(low_balance_threshold)s, %(now)s, %(now)s, %(now)s)
ON CONFLICT (organization_id) DO NOTHING;

-- write_balances
UPDATE accounts
SET available_credits = change.available_credits,
    last_sequence = change.last_sequence,
    low_balance_since = change.low_balance_since,
    window_start_time = change.window_start_time,
    window_send_count = change.window_send_count
FROM unnest(
    %(organization_ids)s::text[], %(available_credits)s::bigint[], %(last_sequences)s::bigint[],
    %(low_balance_sinces)s::timestamptz[], %(window_start_times)s::timestamptz[], %(window_send_counts)s::bigint[]
) AS change (
    organization_id, available_credits, last_sequence, low_balance_since, window_start_time, window_send_count
)
WHERE accounts.organization_id = change.organization_id
    AND accounts.organization_id = ANY(%(organization_ids)s) -- shard
;

-- insert_low_balance_notices
INSERT INTO notices (
    organization_id, notice_id, kind, reference_id, email, details, next_attempt_time, create_time
)
SELECT notice.organization_id, notice.notice_id, 'BALANCE_LOW', notice.reference_id, notice.email, notice.details,
    %(now)s, %(now)s
FROM unnest(
    %(organization_ids)s::text[], %(notice_ids)s::uuid[], %(reference_ids)s::text[], %(emails)s::text[],
    %(details)s::jsonb[]
) AS notice (organization_id, notice_id, reference_id, email, details)
ON CONFLICT DO NOTHING;
