-- pgbench's script: the least that a ledger does, in one statement: a debit that the balance allows, and its entry.
\set account random(1, :accounts)
WITH debited AS (
    UPDATE debit_accounts SET balance = balance - 1, version = version + 1
    WHERE account_id = :account AND balance >= 1
    RETURNING account_id, version, balance
)
INSERT INTO debit_entries (account_id, version, amount, balance_after, create_time)
SELECT account_id, version, -1, balance, now() FROM debited;
