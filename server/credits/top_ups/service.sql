-- set_default_alert_email
-- The billing email of the first top-up gets the notices, unless an address is set.
UPDATE accounts
SET alert_email = %(alert_email)s
WHERE organization_id = %(organization_id)s AND alert_email IS NULL;
