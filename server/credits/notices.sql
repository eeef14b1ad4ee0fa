-- find_due_notices
SELECT organization_id, notice_id
FROM notices
WHERE status = 'PENDING' AND next_attempt_time <= %(now)s
ORDER BY next_attempt_time
LIMIT %(limit)s;

-- claim_notice
-- The lease: one replica moves next_attempt_time into the future, and the others then match no row.
UPDATE notices
SET attempts = attempts + 1,
    next_attempt_time = %(lease_expire_time)s
WHERE organization_id = %(organization_id)s AND notice_id = %(notice_id)s
    AND status = 'PENDING' AND next_attempt_time <= %(now)s
RETURNING organization_id, notice_id, kind, email, details, attempts, create_time;

-- read_contact
-- Of a contact in the organization's settings these are its own.
SELECT billing_name,
    CASE WHEN contact IS NULL THEN alert_locale ELSE coalesce(contact ->> 'locale', '') END,
    CASE WHEN contact IS NULL THEN alert_time_zone ELSE coalesce(contact ->> 'time_zone', '') END
FROM accounts
LEFT JOIN organization_settings ON organization_settings.organization_id = accounts.organization_id
    AND version = settings_version
LEFT JOIN LATERAL jsonb_array_elements(settings -> 'billing_contacts') AS contact ON contact ->> 'email' = %(email)s
WHERE accounts.organization_id = %(organization_id)s
LIMIT 1;

-- record_outcome
-- Only the latest attempt records its outcome: an attempt whose lease ended and that was claimed again matches no row.
UPDATE notices
SET status = %(status)s,
    next_attempt_time = %(next_attempt_time)s
WHERE organization_id = %(organization_id)s AND notice_id = %(notice_id)s
    AND status = 'PENDING' AND attempts = %(attempts)s;

-- find_old_notices
SELECT organization_id, notice_id
FROM notices
WHERE status <> 'PENDING' AND create_time < %(before)s
ORDER BY create_time
LIMIT %(limit)s;

-- remove_notice
DELETE FROM notices
WHERE organization_id = %(organization_id)s AND notice_id = %(notice_id)s;
