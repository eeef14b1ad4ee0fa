-- set_contact
-- The billing email of the first top-up gets the notices, unless an address is set; they have the latest name.
UPDATE accounts
SET alert_email = coalesce(alert_email, %(alert_email)s),
    billing_name = coalesce(nullif(%(billing_name)s, ''), billing_name)
WHERE organization_id = %(organization_id)s;
