-- find_entry
SELECT organization_id, sequence, kind, credits, balance_after, reference_id, reason, created_by, create_time
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND kind = %(kind)s AND reference_id = %(reference_id)s;

-- insert_entries
INSERT INTO ledger_entries (
    organization_id, sequence, kind, credits, balance_after, reference_id, reason, created_by, create_time
)
SELECT entry.organization_id, entry.sequence, entry.kind, entry.credits, entry.balance_after, entry.reference_id,
    %(reason)s, %(created_by)s, %(now)s
FROM unnest(
    %(organization_ids)s::text[], %(sequences)s::bigint[], %(kinds)s::text[], %(credits)s::bigint[],
    %(balances_after)s::bigint[], %(reference_ids)s::uuid[]
) AS entry (organization_id, sequence, kind, credits, balance_after, reference_id);

-- list_entries
SELECT organization_id, sequence, kind, credits, balance_after, reference_id, reason, created_by, create_time
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND sequence < %(before_sequence)s
ORDER BY sequence DESC
LIMIT %(limit)s;
