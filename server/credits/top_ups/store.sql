-- insert_top_up
INSERT INTO top_ups ({top_up})
VALUES ({values});

-- find_top_up
SELECT {top_up}
FROM top_ups
WHERE organization_id = %(organization_id)s AND top_up_id = %(top_up_id)s;

-- lock_top_up
SELECT {top_up}
FROM top_ups
WHERE organization_id = %(organization_id)s AND top_up_id = %(top_up_id)s
FOR NO KEY UPDATE;

-- list_top_ups
-- Ids are ordered by time, so that this order is newest first.
SELECT {top_up}
FROM top_ups
WHERE organization_id = %(organization_id)s
    AND status = ANY(%(statuses)s)
    AND top_up_id < %(before)s
ORDER BY top_up_id DESC
LIMIT %(limit)s;

-- find_unfinished
SELECT top_up_id
FROM top_ups
WHERE organization_id = %(organization_id)s AND status IN ('CREATING', 'OPEN', 'CANCELING');

-- find_returned_overpayment
-- What was paid too much for it is in the customer's balance, and some of its money went back. See docs/stripe.md.
SELECT 1
FROM top_ups
WHERE organization_id = %(organization_id)s
    AND 'OVERPAID' = ANY(flags)
    AND flags && ARRAY['REFUNDED', 'DISPUTED']
    AND NOT flags <@ resolved_flags
LIMIT 1;

-- find_due_top_ups
-- Without locks: a worker claims each top-up in a transaction of its own.
SELECT organization_id, top_up_id
FROM top_ups
WHERE status IN ('CREATING', 'OPEN', 'CANCELING', 'UNCOLLECTIBLE')
    AND next_check_time <= %(now)s
    AND (lease_expire_time IS NULL OR lease_expire_time <= %(now)s)
ORDER BY next_check_time
LIMIT %(limit)s;

-- write_top_up
UPDATE top_ups
SET status = %(status)s,
    end_status = %(end_status)s,
    failure_reason = %(failure_reason)s,
    flags = %(flags)s,
    attempt = %(attempt)s,
    attempt_time = %(attempt_time)s,
    stripe_customer_id = %(stripe_customer_id)s,
    stripe_invoice_id = %(stripe_invoice_id)s,
    invoice_number = %(invoice_number)s,
    invoice_total = %(invoice_total)s,
    tax = %(tax)s,
    amount_paid = %(amount_paid)s,
    amount_remaining = %(amount_remaining)s,
    hosted_invoice_url = %(hosted_invoice_url)s,
    invoice_pdf_url = %(invoice_pdf_url)s,
    links_fetch_time = %(links_fetch_time)s,
    due_time = %(due_time)s,
    paid_time = %(paid_time)s,
    cancel_time = %(cancel_time)s,
    lease_expire_time = %(lease_expire_time)s,
    is_frozen = %(is_frozen)s,
    frozen_credits = %(frozen_credits)s,
    resolved_credits = %(resolved_credits)s,
    resolved_flags = %(resolved_flags)s,
    resolve_time = %(resolve_time)s,
    resolve_request_id = %(resolve_request_id)s,
    resolve_reason = %(resolve_reason)s,
    resolved_by = %(resolved_by)s,
    charge_time = %(charge_time)s,
    next_check_time = %(next_check_time)s
WHERE organization_id = %(organization_id)s AND top_up_id = %(top_up_id)s;

-- write_customer
UPDATE accounts
SET stripe_customer_id = %(stripe_customer_id)s
WHERE organization_id = %(organization_id)s;

-- set_contact
-- The billing email of the first top-up gets the notices, unless an address is set; they have the latest name.
UPDATE accounts
SET alert_email = coalesce(alert_email, %(alert_email)s),
    billing_name = coalesce(nullif(%(billing_name)s, ''), billing_name)
WHERE organization_id = %(organization_id)s;
