-- find_next_day
-- The oldest day whose MACs are all made and that has no head.
SELECT ledger_days.day
FROM ledger_days
LEFT JOIN ledger_heads ON ledger_heads.day = ledger_days.day
WHERE ledger_days.mac IS NOT NULL AND ledger_heads.day IS NULL
ORDER BY ledger_days.day
LIMIT 1;

-- read_macs
-- Each MAC of a day with the organization's MAC before it.
SELECT ledger.organization_id, ledger.last_sequence, ledger.key_id, ledger.mac, coalesce(earlier.last_sequence, 0),
    coalesce(earlier.mac, '')
FROM ledger_macs AS ledger
LEFT JOIN LATERAL (
    SELECT last_sequence, mac
    FROM ledger_macs
    WHERE ledger_macs.organization_id = ledger.organization_id AND ledger_macs.last_sequence < ledger.last_sequence
    ORDER BY last_sequence DESC
    LIMIT 1
) AS earlier ON true
WHERE ledger.day = %(day)s
ORDER BY ledger.organization_id, ledger.last_sequence;

-- read_leaves
SELECT {leaves}, {digest}
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND sequence > %(previous_last)s AND sequence <= %(last_sequence)s;

-- read_previous_head
SELECT head
FROM ledger_heads
WHERE day < %(day)s
ORDER BY day DESC
LIMIT 1;

-- insert_head
INSERT INTO ledger_heads (day, head, key_id, signature)
VALUES (%(day)s, %(head)s, %(key_id)s, %(signature)s)
ON CONFLICT (day) DO NOTHING;

-- insert_roots
INSERT INTO ledger_roots ({root}, day)
SELECT {root}, %(day)s
FROM {root:rows} AS new ({root})
ON CONFLICT (organization_id, last_sequence) DO NOTHING;

-- find_root
SELECT last_sequence, first_sequence, day, root, path
FROM (
    SELECT *
    FROM ledger_roots
    WHERE organization_id = %(organization_id)s AND last_sequence >= %(sequence)s
    ORDER BY last_sequence
    LIMIT 1
) AS next
WHERE first_sequence <= %(sequence)s;

-- read_head
SELECT head, key_id, signature
FROM ledger_heads
WHERE day = %(day)s;

-- read_entry
SELECT {entry}
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND sequence = %(sequence)s;
