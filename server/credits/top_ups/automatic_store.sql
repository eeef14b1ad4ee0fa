-- read_automatic
SELECT {automatic}
FROM automatic_top_ups
WHERE organization_id = %(organization_id)s;

-- lock_automatic
SELECT {automatic}
FROM automatic_top_ups
WHERE organization_id = %(organization_id)s
FOR NO KEY UPDATE;

-- create_automatic
INSERT INTO automatic_top_ups (organization_id, next_attempt_time, change_time)
VALUES (%(organization_id)s, %(now)s, %(now)s)
ON CONFLICT (organization_id) DO NOTHING;

-- write_automatic
UPDATE automatic_top_ups
SET {assignments}, change_time = %(now)s
WHERE organization_id = %(organization_id)s;

-- insert_consent
INSERT INTO consents (organization_id, consent_id, consent_text, given_by, terms, create_time)
VALUES (%(organization_id)s, %(consent_id)s, %(consent_text)s, %(given_by)s, %(terms)s, %(now)s);

-- read_consented_total
SELECT (terms ->> 'total')::numeric
FROM consents
WHERE organization_id = %(organization_id)s
ORDER BY consent_id DESC
LIMIT 1;

-- read_month_credits
-- What automatic top-ups have bought since the beginning of the month. One that was paid and needs a person counts in the
-- month of its order, and one that a person resolved in that of the decision.
SELECT coalesce(sum(credits), 0)::bigint
FROM top_ups
WHERE organization_id = %(organization_id)s
    AND is_automatic
    AND (
        paid_time >= %(month)s
        OR (status = 'RESOLVED' AND resolve_time >= %(month)s)
        OR (status = 'REVIEW' AND amount_paid > 0 AND create_time >= %(month)s)
    );

-- read_state
SELECT {automatic_state}
FROM automatic_top_ups
WHERE automatic_top_ups.organization_id = ANY(%(organization_ids)s);
