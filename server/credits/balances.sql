-- read_balances
SELECT organization_id, available_credits, low_balance_threshold, last_sequence
FROM accounts
WHERE organization_id = ANY(%(organization_ids)s);
