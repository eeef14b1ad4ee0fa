-- find_due_automatic
-- Without locks: each order is decided in a transaction of its own.
SELECT automatic_top_ups.organization_id
FROM automatic_top_ups
JOIN accounts ON accounts.organization_id = automatic_top_ups.organization_id
WHERE is_enabled
    AND next_attempt_time <= %(now)s
    AND available_credits < threshold_credits
    AND suspend_time IS NULL
    AND NOT EXISTS (
        SELECT
        FROM top_ups
        WHERE top_ups.organization_id = automatic_top_ups.organization_id
            AND top_ups.status IN ('CREATING', 'OPEN', 'CANCELING')
    )
ORDER BY next_attempt_time
LIMIT %(limit)s;

-- find_thresholds
SELECT organization_id, CASE WHEN is_enabled THEN threshold_credits ELSE 0 END
FROM automatic_top_ups
WHERE change_time >= %(since)s;
