-- find_first_sequence
-- Sequences have no gaps, so that a time is found by halving their range: by about 24 reads of the primary key for
-- 10 million entries. certain_time is before `time` by more than entries can be out of order; from it on they are read.
WITH RECURSIVE search (low, high) AS (
    SELECT 0::bigint, last_sequence + 1
    FROM accounts
    WHERE organization_id = %(organization_id)s
    UNION ALL
    SELECT
        CASE WHEN entry.create_time < %(certain_time)s THEN entry.sequence::bigint ELSE low END,
        CASE WHEN entry.create_time < %(certain_time)s THEN high ELSE entry.sequence::bigint END
    FROM search
    JOIN ledger_entries AS entry ON entry.organization_id = %(organization_id)s AND entry.sequence = (low + high) / 2
    WHERE high - low > 1
)
SELECT coalesce(
    (
        SELECT sequence
        FROM ledger_entries
        WHERE organization_id = %(organization_id)s AND sequence > (SELECT max(low) FROM search)
            AND create_time >= %(time)s
        ORDER BY sequence
        LIMIT 1
    ),
    (SELECT last_sequence + 1 FROM accounts WHERE organization_id = %(organization_id)s),
    1
);

-- read_entry
SELECT balance_after, create_time
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND sequence = %(sequence)s;

-- read_last_sequence
SELECT last_sequence
FROM accounts
WHERE organization_id = %(organization_id)s;

-- find_entries_of
-- At most one of each kind. Without a range of sequences, for which a plan might read all of them by their index.
SELECT {entry}
FROM ledger_entries
WHERE reference_id = %(reference_id)s AND kind = ANY(%(kinds)s::text[]) AND organization_id = %(organization_id)s;

-- find_entries_of_kinds
-- By the index without sends: the newest of each kind, of which the newest are taken.
SELECT {entry:entry}
FROM unnest(%(kinds)s::text[]) AS wanted (kind)
CROSS JOIN LATERAL (
    SELECT {entry}
    FROM ledger_entries
    WHERE organization_id = %(organization_id)s AND kind = wanted.kind AND kind <> 'SEND'
        AND sequence < %(before_sequence)s AND sequence >= %(first_sequence)s
    ORDER BY sequence DESC
    LIMIT %(limit)s
) AS entry
ORDER BY sequence DESC
LIMIT %(limit)s;

-- find_entries
SELECT {entry}
FROM ledger_entries
WHERE organization_id = %(organization_id)s AND sequence < %(before_sequence)s AND sequence >= %(first_sequence)s
    AND kind = ANY(%(kinds)s::text[])
ORDER BY sequence DESC
LIMIT %(limit)s;

-- read_spending
-- One snapshot: what was spent is what was there, and what came from outside since, less what is left.
SELECT available_credits,
    (
        SELECT balance_after
        FROM ledger_entries
        WHERE organization_id = %(organization_id)s AND sequence = %(first_sequence)s - 1
    ),
    (
        SELECT sum(credits)
        FROM ledger_entries
        WHERE organization_id = %(organization_id)s AND kind IN ('TOP_UP', 'ADJUSTMENT') AND kind <> 'SEND'
            AND sequence >= %(first_sequence)s
    )::bigint
FROM accounts
WHERE organization_id = %(organization_id)s;

-- export_entries
-- PostgreSQL makes the lines, as its COPY would: a row for each entry in Python would take several times as long. The
-- lines are in the order of the inner query. A time as text takes half as long as with to_char; every session has the
-- DateStyle ISO.
SELECT string_agg(line, ''), max(sequence)
FROM (
    SELECT sequence,
        %(month)s::text || ',' || kind || ',' || sequence || ','
            || (create_time AT TIME ZONE 'UTC') || 'Z,' || credits || ','
            || balance_after || ',' || reference_id || ',' || {reason} || ',' || {created_by} || ','
            || CASE WHEN kind = 'TOP_UP' THEN coalesce(
                (
                    SELECT {invoice_number} || ',' || currency_code || ',' || trim_scale(coalesce(invoice_total, total))
                    FROM top_ups
                    WHERE top_ups.organization_id = %(organization_id)s AND top_up_id = reference_id
                ),
                ',,'
            ) ELSE ',,' END || chr(10) AS line
    FROM ledger_entries
    WHERE organization_id = %(organization_id)s AND sequence > %(sequence)s AND sequence < %(end_sequence)s
    ORDER BY sequence
    LIMIT %(limit)s
) AS entry;
