-- write_customer
UPDATE accounts
SET stripe_customer_id = %(stripe_customer_id)s
WHERE organization_id = %(organization_id)s;

-- insert_payment_notice
-- Unique per top-up: however often the payment is seen, it is confirmed once.
INSERT INTO notices (
    organization_id, notice_id, kind, reference_id, email, details, next_attempt_time, create_time
) VALUES (
    %(organization_id)s, %(notice_id)s, 'PAYMENT_CONFIRMED', %(reference_id)s, %(email)s, %(details)s, %(now)s, %(now)s
)
ON CONFLICT DO NOTHING;
