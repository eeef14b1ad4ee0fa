-- find_due_notices
SELECT organization_id, notice_id
FROM notices
WHERE status = 'PENDING' AND next_attempt_time <= %(now)s
ORDER BY next_attempt_time
LIMIT %(limit)s;

-- claim_notice
-- Of several replicas one moves next_attempt_time into the future; the others then find no row.
UPDATE notices
SET attempts = attempts + 1,
    next_attempt_time = %(lease_expire_time)s
WHERE organization_id = %(organization_id)s AND notice_id = %(notice_id)s
    AND status = 'PENDING' AND next_attempt_time <= %(now)s
RETURNING organization_id, notice_id, kind, email, details, attempts;

-- settle_notice
-- Only by the attempt that is the latest: one that outlived its lease has no say.
UPDATE notices
SET status = %(status)s,
    next_attempt_time = %(next_attempt_time)s
WHERE organization_id = %(organization_id)s AND notice_id = %(notice_id)s
    AND status = 'PENDING' AND attempts = %(attempts)s;
