-- read_accounts
SELECT {account}
FROM accounts
WHERE organization_id = ANY(%(organization_ids)s);

-- lock_accounts
-- A statement of its own: the next statement must see everything that was committed before this lock was granted.
-- Locks are taken in the order of the ids, so that two transactions cannot deadlock.
SELECT {account}
FROM accounts
WHERE organization_id = ANY(%(organization_ids)s)
ORDER BY organization_id
FOR NO KEY UPDATE;

-- lock_free_accounts
-- As lock_accounts, without waiting: leaves out the accounts that another transaction has locked.
SELECT {account}
FROM accounts
WHERE organization_id = ANY(%(organization_ids)s)
ORDER BY organization_id
FOR NO KEY UPDATE SKIP LOCKED;

-- find_accounts
SELECT organization_id
FROM accounts
WHERE organization_id = ANY(%(organization_ids)s);

-- create_account
INSERT INTO accounts (organization_id, low_balance_threshold, low_balance_since, window_start_time, create_time)
VALUES (%(organization_id)s, %(low_balance_threshold)s, %(now)s, %(now)s, %(now)s)
ON CONFLICT (organization_id) DO NOTHING;

-- find_requests
-- Joined pair by pair: two ANY conditions would probe the index for every organization with every request_id.
SELECT requests.organization_id, requests.request_id, requests.rpc, requests.fingerprint, requests.answer_id
FROM unnest(%(organization_ids)s::text[], %(request_ids)s::uuid[]) AS wanted (organization_id, request_id)
JOIN requests USING (organization_id, request_id)
WHERE true
    AND requests.organization_id = ANY(%(organization_ids)s) -- shard
;

-- insert_request
INSERT INTO requests (organization_id, request_id, rpc, fingerprint, answer_id, create_time)
VALUES (%(organization_id)s, %(request_id)s, %(rpc)s, %(fingerprint)s, %(answer_id)s, %(now)s);

-- write_balances
UPDATE accounts
SET available_credits = changed.available_credits,
    last_sequence = changed.last_sequence,
    low_balance_since = changed.low_balance_since,
    window_start_time = changed.window_start_time,
    window_send_count = changed.window_send_count
FROM {balance:rows} AS changed ({balance})
WHERE accounts.organization_id = changed.organization_id
    AND accounts.organization_id = ANY(%(organization_id)s) -- shard
;

-- insert_notices
-- The reference of a contact in the settings says who it is to: the unique constraint one_notice_per_cause is without the
-- address. It admits one notice per cause, even if what causes it is done twice.
INSERT INTO notices (
    organization_id, notice_id, kind, reference_id, email, details, next_attempt_time, create_time
)
SELECT cause.organization_id, gen_random_uuid(), %(kind)s, contact.reference_id, contact.email, cause.details, %(now)s,
    %(now)s
FROM unnest(%(organization_ids)s::text[], %(reference_ids)s::text[], %(details)s::jsonb[])
    AS cause (organization_id, reference_id, details)
JOIN accounts ON accounts.organization_id = cause.organization_id
LEFT JOIN organization_settings ON organization_settings.organization_id = accounts.organization_id
    AND organization_settings.version = accounts.settings_version
    AND organization_settings.organization_id = ANY(%(organization_ids)s) -- shard
CROSS JOIN LATERAL (
    SELECT alert_email, cause.reference_id
    UNION ALL
    SELECT billing_contact ->> 'email', concat(cause.reference_id, ' ', billing_contact ->> 'email')
    FROM jsonb_array_elements(settings -> 'billing_contacts') AS billing_contact
    WHERE billing_contact ->> 'email' IS DISTINCT FROM alert_email
) AS contact (email, reference_id)
WHERE contact.email IS NOT NULL
    AND accounts.organization_id = ANY(%(organization_ids)s) -- shard
ON CONFLICT DO NOTHING;

-- read_suspension
SELECT suspend_time, suspend_reason, suspended_by
FROM accounts
WHERE organization_id = %(organization_id)s AND suspend_time IS NOT NULL;

-- suspend
UPDATE accounts
SET suspend_time = %(now)s, suspend_reason = %(reason)s, suspended_by = %(created_by)s
WHERE organization_id = %(organization_id)s AND suspend_time IS NULL;

-- resume
UPDATE accounts
SET suspend_time = NULL, suspend_reason = NULL, suspended_by = NULL
WHERE organization_id = %(organization_id)s;

-- read_lost_times
SELECT restore_time, start_time, end_time
FROM lost_times
ORDER BY restore_time;

-- read_last_success
-- A server writes it every minute or so.
SELECT max(last_success_time)
FROM job_leases;

-- count_other_sessions
-- Without those of Citus itself, between its nodes and in the background.
-- A backend_type is hidden from a role that may not read the session's state: that of a replica from the application's.
SELECT count(*)
FROM pg_stat_activity
WHERE datname = current_database() AND usename = session_user AND application_name <> %(own)s
    AND coalesce(backend_type, 'client backend') = 'client backend' AND left(application_name, 14) <> 'citus_internal';

-- insert_lost_time
INSERT INTO lost_times (restore_time, start_time, end_time)
VALUES (%(restore_time)s, %(start_time)s, %(end_time)s);
