-- remember_alert_email
UPDATE accounts
SET alert_email = %(alert_email)s
WHERE organization_id = %(organization_id)s AND alert_email IS NULL;
