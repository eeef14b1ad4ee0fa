-- find_entry
SELECT {entry}
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND kind = %(kind)s AND reference_id = %(reference_id)s;

-- insert_entries
INSERT INTO ledger_entries ({new_entry}, reason, created_by, create_time)
SELECT {new_entry}, %(reason)s, %(created_by)s, %(now)s
FROM {new_entry:rows} AS new ({new_entry});

-- list_entries
SELECT {entry}
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND sequence < %(before_sequence)s
ORDER BY sequence DESC
LIMIT %(limit)s;

-- digest_entry
SELECT {digest}
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND sequence = %(sequence)s;

-- insert_entry_mac
INSERT INTO entry_macs (organization_id, sequence, key_id, mac)
VALUES (%(organization_id)s, %(sequence)s, %(key_id)s, %(mac)s);
