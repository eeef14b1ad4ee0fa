-- read_contact
SELECT alert_locale, alert_time_zone
FROM accounts
WHERE organization_id = %(organization_id)s;

-- write_alerts
UPDATE accounts
SET low_balance_threshold = %(low_balance_threshold)s,
    low_balance_since = %(low_balance_since)s,
    alert_email = %(alert_email)s
WHERE organization_id = %(organization_id)s;

-- write_contact
UPDATE accounts
SET alert_locale = coalesce(%(locale)s::text, alert_locale),
    alert_time_zone = coalesce(%(time_zone)s::text, alert_time_zone)
WHERE organization_id = %(organization_id)s
RETURNING alert_locale, alert_time_zone;
