-- Each finding_… query returns (organization_id, description) per violation, at most `limit` rows. organization_id
-- selects one organization; NULL selects all. PostgreSQL sorts and joins on disk, in bounded memory, and plans each
-- query for its values, so that an audit of one organization is an index scan.

-- count_entries
SELECT count(*), coalesce(sum(entry_count), 0)::bigint
FROM (
    SELECT count(*) AS entry_count
    FROM ledger_entries
    WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
    GROUP BY organization_id
) AS ledger;

-- finding_broken_chain
-- The sequence has no gaps, and every balance follows from the one before.
SELECT organization_id, concat(
    'entry ', sequence, ' of ', credits, ' leaves ', balance_after,
    '; entry ', previous_sequence, ' left ', previous_balance
)
FROM (
    SELECT organization_id, sequence, credits, balance_after,
        lag(sequence, 1, 0::bigint) OVER chain AS previous_sequence,
        lag(balance_after, 1, 0::bigint) OVER chain AS previous_balance
    FROM ledger_entries
    WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
    WINDOW chain AS (PARTITION BY organization_id ORDER BY sequence)
) AS link
WHERE sequence <> previous_sequence + 1 OR balance_after <> previous_balance + credits
LIMIT %(limit)s;

-- finding_wrong_balance
-- The account's balance and last sequence equal the sum and the last sequence of its entries.
SELECT coalesce(account.organization_id, ledger.organization_id), concat(
    'the account has ', account.available_credits, ' credits at sequence ', account.last_sequence,
    '; the entries make ', coalesce(ledger.credits, 0), ' at ', coalesce(ledger.last_sequence, 0)
)
FROM (
    SELECT organization_id, available_credits, last_sequence
    FROM accounts
    WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
) AS account
FULL JOIN (
    SELECT organization_id, sum(credits) AS credits, max(sequence) AS last_sequence
    FROM ledger_entries
    WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
    GROUP BY organization_id
) AS ledger ON ledger.organization_id = account.organization_id
WHERE account.available_credits IS DISTINCT FROM coalesce(ledger.credits, 0)
    OR account.last_sequence IS DISTINCT FROM coalesce(ledger.last_sequence, 0)
LIMIT %(limit)s;

-- finding_delivery_not_in_ledger
-- Every delivery was charged its credits, of which a test organization's has none, and refunded if and only if it is
-- marked refunded. The deliveries of one organization are found by its OTPs, because no index of deliveries begins with
-- organization_id.
SELECT delivery.organization_id, concat(
    'delivery ', delivery.delivery_id, ' costs ', delivery.credits, ' at sequence ', delivery.ledger_sequence,
    ', refunded ', delivery.refunded, '; the ledger took ', -send.credits, ' at ', send.sequence,
    ' and gave back ', coalesce(refund.credits, 0)
)
FROM deliveries AS delivery
LEFT JOIN ledger_entries AS send ON send.organization_id = delivery.organization_id AND send.kind = 'SEND'
    AND send.reference_id = delivery.delivery_id
LEFT JOIN ledger_entries AS refund ON refund.organization_id = delivery.organization_id AND refund.kind = 'REFUND'
    AND refund.reference_id = delivery.delivery_id
WHERE (%(organization_id)s::text IS NULL
        OR (delivery.organization_id = %(organization_id)s AND delivery.otp_id IN (
            SELECT otp_id
            FROM otps
            WHERE otps.organization_id = %(organization_id)s
        )))
    AND (coalesce(send.credits, 0) <> -delivery.credits
        OR (delivery.credits > 0 AND send.sequence IS DISTINCT FROM delivery.ledger_sequence)
        OR (delivery.credits > 0 AND send.balance_after IS DISTINCT FROM delivery.balance_after)
        OR coalesce(refund.credits, 0) <> CASE WHEN delivery.refunded THEN delivery.credits ELSE 0 END)
LIMIT %(limit)s;

-- finding_send_without_delivery
-- Every SEND entry has its delivery. Retention may have removed deliveries older than deliveries_since.
SELECT send.organization_id, concat('the ledger took ', -send.credits, ' at ', send.sequence, ' for no delivery')
FROM ledger_entries AS send
LEFT JOIN deliveries AS delivery ON delivery.organization_id = send.organization_id
    AND delivery.delivery_id = send.reference_id
WHERE (%(organization_id)s::text IS NULL OR send.organization_id = %(organization_id)s)
    AND send.kind = 'SEND' AND delivery.delivery_id IS NULL
    AND (%(deliveries_since)s::timestamptz IS NULL OR send.create_time >= %(deliveries_since)s)
LIMIT %(limit)s;

-- finding_delivery_without_otp
-- Every charged delivery has its OTP: retention removes both together. The OTP is missing, so the deliveries of one
-- organization are found by its ledger.
SELECT delivery.organization_id, concat(
    'delivery ', delivery.delivery_id, ' at ', delivery.ledger_sequence, ' is of no OTP'
)
FROM deliveries AS delivery
LEFT JOIN otps ON otps.organization_id = delivery.organization_id AND otps.otp_id = delivery.otp_id
WHERE (%(organization_id)s::text IS NULL
        OR (delivery.organization_id = %(organization_id)s AND delivery.delivery_id IN (
            SELECT reference_id
            FROM ledger_entries
            WHERE ledger_entries.organization_id = %(organization_id)s AND kind = 'SEND'
        )))
    AND otps.otp_id IS NULL
LIMIT %(limit)s;

-- finding_delivery_not_in_outbox
-- Every delivery without a final outcome is in the outbox: otherwise it is charged and nobody sends it.
SELECT delivery.organization_id, concat(
    'delivery ', delivery.delivery_id, ' at ', delivery.ledger_sequence, ' is QUEUED and not in the outbox'
)
FROM deliveries AS delivery
LEFT JOIN outbox ON outbox.organization_id = delivery.organization_id AND outbox.delivery_id = delivery.delivery_id
WHERE (%(organization_id)s::text IS NULL
        OR (delivery.organization_id = %(organization_id)s AND delivery.otp_id IN (
            SELECT otp_id
            FROM otps
            WHERE otps.organization_id = %(organization_id)s
        )))
    AND delivery.status = 'QUEUED' AND outbox.delivery_id IS NULL
LIMIT %(limit)s;

-- finding_outbox_without_delivery
-- What is in the outbox waits for an outcome, or for the time of its fallbacks: otherwise a message is sent a second
-- time, or without a charge.
SELECT outbox.organization_id, concat(
    'the outbox has delivery ', outbox.delivery_id, ', which is ', coalesce(delivery.status, 'missing')
)
FROM outbox
LEFT JOIN deliveries AS delivery ON delivery.organization_id = outbox.organization_id
    AND delivery.delivery_id = outbox.delivery_id AND delivery.otp_id = outbox.otp_id
WHERE (%(organization_id)s::text IS NULL OR outbox.organization_id = %(organization_id)s)
    AND delivery.status IS DISTINCT FROM 'QUEUED'
    AND (delivery.status IS NULL OR outbox.fall_back_time IS NULL OR outbox.next_attempt_time <> 'infinity')
LIMIT %(limit)s;

-- finding_refund_without_send
-- Every REFUND entry returns all credits of one earlier SEND entry.
SELECT refund.organization_id, concat(
    'the ledger gave back ', refund.credits, ' at ', refund.sequence, ' for no such send'
)
FROM ledger_entries AS refund
LEFT JOIN ledger_entries AS send ON send.organization_id = refund.organization_id AND send.kind = 'SEND'
    AND send.reference_id = refund.reference_id AND send.credits = -refund.credits AND send.sequence < refund.sequence
WHERE (%(organization_id)s::text IS NULL OR refund.organization_id = %(organization_id)s)
    AND refund.kind = 'REFUND' AND send.sequence IS NULL
LIMIT %(limit)s;

-- finding_top_up_not_in_ledger
-- A top-up's credits were added, as ordered, if and only if it is PAID.
SELECT top_up.organization_id, concat(
    'top-up ', top_up.top_up_id, ' of ', top_up.credits, ' is ', top_up.status,
    '; the ledger gave ', coalesce(entry.credits, 0)
)
FROM top_ups AS top_up
LEFT JOIN ledger_entries AS entry ON entry.organization_id = top_up.organization_id AND entry.kind = 'TOP_UP'
    AND entry.reference_id = top_up.top_up_id
WHERE (%(organization_id)s::text IS NULL OR top_up.organization_id = %(organization_id)s)
    AND coalesce(entry.credits, 0) <> CASE WHEN top_up.status = 'PAID' THEN top_up.credits ELSE 0 END
LIMIT %(limit)s;

-- finding_credit_without_top_up
-- Every TOP_UP entry has its top-up.
SELECT entry.organization_id, concat('the ledger gave ', entry.credits, ' at ', entry.sequence, ' for no top-up')
FROM ledger_entries AS entry
LEFT JOIN top_ups AS top_up ON top_up.organization_id = entry.organization_id AND top_up.top_up_id = entry.reference_id
WHERE (%(organization_id)s::text IS NULL OR entry.organization_id = %(organization_id)s)
    AND entry.kind = 'TOP_UP' AND top_up.top_up_id IS NULL
LIMIT %(limit)s;

-- finding_adjustment_without_author
-- Every ADJUSTMENT entry says who made it and why.
SELECT organization_id, concat('an adjustment of ', credits, ' at ', sequence, ' has no author or no reason')
FROM ledger_entries
WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
    AND kind = 'ADJUSTMENT' AND (reason = '' OR created_by = '')
LIMIT %(limit)s;

-- digest_entries_with_own_mac
-- Each entry that brings credits from outside, and each such MAC: either may be missing.
SELECT organization_id, sequence, entry_mac.key_id, entry_mac.mac, {digest}
FROM (
    SELECT *
    FROM ledger_entries
    WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
        AND kind IN ('TOP_UP', 'ADJUSTMENT')
) AS entry
FULL JOIN (
    SELECT *
    FROM entry_macs
    WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
) AS entry_mac USING (organization_id, sequence)
GROUP BY organization_id, sequence, entry_mac.key_id, entry_mac.mac;

-- digest_covered_entries
-- Each daily MAC with the digest of the entries that it is of. LATERAL: each entry is read once, by the primary key.
SELECT covered.organization_id, covered.last_sequence, covered.day, covered.key_id, covered.mac,
    coalesce(covered.previous_mac, ''), coalesce(ledger.digest, '')
FROM (
    SELECT *,
        lag(last_sequence, 1, 0::bigint) OVER chain AS previous_sequence,
        lag(mac) OVER chain AS previous_mac
    FROM ledger_macs
    WHERE (%(organization_id)s::text IS NULL OR organization_id = %(organization_id)s)
    WINDOW chain AS (PARTITION BY organization_id ORDER BY last_sequence)
) AS covered
CROSS JOIN LATERAL (
    SELECT {digest} AS digest
    FROM ledger_entries
    WHERE organization_id = covered.organization_id
        AND sequence > covered.previous_sequence AND sequence <= covered.last_sequence
) AS ledger
ORDER BY covered.organization_id, covered.last_sequence;

-- digest_days
-- Each day with the digest of its MACs, of which each says which organization and day it is of. NULL while unfinished.
SELECT coalesce(ledger_days.day, made.day), ledger_days.day IS NOT NULL, ledger_days.key_id, ledger_days.mac,
    coalesce(lag(ledger_days.mac) OVER (ORDER BY ledger_days.day), ''), coalesce(made.digest, '')
FROM ledger_days
FULL JOIN (
    SELECT day, sha256(string_agg(mac, ''::bytea ORDER BY mac)) AS digest
    FROM ledger_macs
    GROUP BY day
) AS made ON made.day = ledger_days.day
ORDER BY ledger_days.day;

-- find_any_day
SELECT
FROM ledger_days
LIMIT 1;

-- begin_day
-- Returns a row unless a day is unfinished, or this one was begun before.
INSERT INTO ledger_days (day)
SELECT %(day)s
WHERE NOT EXISTS (
    SELECT
    FROM ledger_days
    WHERE mac IS NULL OR day >= %(day)s
)
ON CONFLICT DO NOTHING
RETURNING day;

-- lock_unfinished_day
-- The lock keeps every MAC of the day before the day's own one.
SELECT day
FROM ledger_days
WHERE mac IS NULL
FOR UPDATE;

-- find_next_accounts
SELECT organization_id
FROM accounts
WHERE organization_id > %(after)s
ORDER BY organization_id
LIMIT %(accounts)s;

-- digest_next_entries
-- For each account, the entries after its newest MAC: at most `entries`, and none from the first one that is later than
-- the day.
SELECT account.organization_id, newest.last_sequence, coalesce(newest_mac.mac, ''), ledger.last_sequence, ledger.digest
FROM accounts AS account
CROSS JOIN LATERAL (
    SELECT coalesce(max(last_sequence), 0) AS last_sequence
    FROM ledger_macs
    WHERE ledger_macs.organization_id = account.organization_id
) AS newest
LEFT JOIN ledger_macs AS newest_mac ON newest_mac.organization_id = account.organization_id
    AND newest_mac.last_sequence = newest.last_sequence
CROSS JOIN LATERAL (
    SELECT max(sequence) AS last_sequence, {digest} AS digest
    FROM ledger_entries
    WHERE organization_id = account.organization_id
        AND sequence > newest.last_sequence AND sequence <= newest.last_sequence + %(entries)s
        AND sequence < coalesce((
            SELECT min(later.sequence)
            FROM ledger_entries AS later
            WHERE later.organization_id = account.organization_id
                AND later.sequence > newest.last_sequence AND later.sequence <= newest.last_sequence + %(entries)s
                AND later.create_time >= %(end_time)s
        ), newest.last_sequence + %(entries)s + 1)
) AS ledger
WHERE account.organization_id = ANY(%(organization_ids)s)
ORDER BY account.organization_id;

-- insert_ledger_macs
INSERT INTO ledger_macs ({new_mac}, day)
SELECT {new_mac}, %(day)s
FROM {new_mac:rows} AS new ({new_mac});

-- read_previous_day
SELECT mac
FROM ledger_days
WHERE day < %(day)s
ORDER BY day DESC
LIMIT 1;

-- digest_day
SELECT coalesce(sha256(string_agg(mac, ''::bytea ORDER BY mac)), ''), count(*)
FROM ledger_macs
WHERE day = %(day)s;

-- finish_day
UPDATE ledger_days
SET key_id = %(key_id)s, mac = %(mac)s
WHERE day = %(day)s;
