-- list_since
SELECT organization_id, top_up_id, status, stripe_invoice_id, total, failure_reason, flags, resolved_flags
FROM top_ups
WHERE create_time >= %(since)s
ORDER BY create_time;
