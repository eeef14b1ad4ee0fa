-- pgbench's script: a transfer by pgledger from one of the accounts to another one.
\set source random(1, :accounts)
\set target 1 + (:source + random(0, :accounts - 2)) % :accounts
SELECT transfer.id
FROM pgledger_numbers AS source
JOIN pgledger_numbers AS target ON target.number = :target
CROSS JOIN LATERAL pgledger_create_transfer(source.account_id, target.account_id, 1) AS transfer
WHERE source.number = :source;
