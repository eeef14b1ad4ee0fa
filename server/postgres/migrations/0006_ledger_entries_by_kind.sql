-- outside a transaction
-- Finds an organization's top-ups, adjustments and refunds among its many sends: for ListLedgerEntries by kind, and for
-- what was spent since a time. A send is not in it: it writes no more for it (measured: no more WAL).
DROP INDEX CONCURRENTLY IF EXISTS ledger_entries_by_kind;
CREATE INDEX CONCURRENTLY ledger_entries_by_kind ON ledger_entries (organization_id, kind, sequence)
WHERE kind <> 'SEND';
