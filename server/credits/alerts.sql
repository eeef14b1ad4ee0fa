-- write_alerts
UPDATE accounts
SET low_balance_threshold = %(low_balance_threshold)s,
    low_balance_since = %(low_balance_since)s,
    alert_email = %(alert_email)s
WHERE organization_id = %(organization_id)s;
