-- read_balances
SELECT accounts.organization_id, available_credits, low_balance_threshold, last_sequence,
    {automatic_state}
FROM accounts
LEFT JOIN automatic_top_ups ON automatic_top_ups.organization_id = accounts.organization_id
WHERE accounts.organization_id = ANY(%(organization_ids)s);
