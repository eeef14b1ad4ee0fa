-- list_since
SELECT organization_id, top_up_id, status, stripe_invoice_id, total, failure_reason, flags, resolved_flags
FROM top_ups
WHERE create_time >= %(since)s
ORDER BY create_time;

-- list_to_resolve
SELECT organization_id, top_up_id, status, stripe_invoice_id, total, failure_reason, flags, resolved_flags
FROM top_ups
WHERE status = 'REVIEW' OR NOT flags <@ resolved_flags
ORDER BY create_time;

-- set_missing_customer
UPDATE accounts
SET stripe_customer_id = %(stripe_customer_id)s
WHERE organization_id = %(organization_id)s AND stripe_customer_id IS NULL;
