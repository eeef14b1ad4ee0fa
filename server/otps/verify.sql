-- lock_otps
SELECT {otp}
FROM otps
WHERE (organization_id, otp_id) IN (
        SELECT organization_id, otp_id
        FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS wanted (organization_id, otp_id)
    )
    AND otp_id >= %(first_otp_id)s
    AND organization_id = ANY(%(organization_ids)s) -- shard
ORDER BY organization_id, otp_id
FOR NO KEY UPDATE;

-- lock_free_otps
-- As lock_otps, without waiting: leaves out the OTPs that another transaction has locked.
SELECT {otp}
FROM otps
WHERE (organization_id, otp_id) IN (
        SELECT organization_id, otp_id
        FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS wanted (organization_id, otp_id)
    )
    AND otp_id >= %(first_otp_id)s
    AND organization_id = ANY(%(organization_ids)s) -- shard
ORDER BY organization_id, otp_id
FOR NO KEY UPDATE SKIP LOCKED;

-- find_otps
SELECT otps.organization_id, otps.otp_id
FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS wanted (organization_id, otp_id)
JOIN otps USING (organization_id, otp_id)
WHERE otps.otp_id >= %(first_otp_id)s
    AND otps.organization_id = ANY(%(organization_ids)s) -- shard
;

-- lock_guess_budgets
-- After the OTPs. A destination without wrong guesses has no row, and a right guess needs none: it comes before them.
-- An OTP has its destination's digest by one key or two, 16 bytes each. As a join, the second one's column would be no
-- condition of the index in a plan that is made while the table is empty.
SELECT organization_id, destination_digest, wrong_guess_times
FROM guess_budgets
WHERE (organization_id, destination_digest) IN (
        SELECT otps.organization_id, unnest(ARRAY[
            substring(otps.destination_digest FOR 16), substring(otps.destination_digest FROM 17)
        ])
        FROM unnest(%(organization_ids)s::text[], %(otp_ids)s::uuid[]) AS wanted (organization_id, otp_id)
        JOIN otps USING (organization_id, otp_id)
        WHERE otps.otp_id >= %(first_otp_id)s
            AND otps.organization_id = ANY(%(organization_ids)s) -- shard
    )
    AND organization_id = ANY(%(organization_ids)s) -- shard
ORDER BY organization_id, destination_digest
FOR NO KEY UPDATE;

-- write_otps
UPDATE otps
SET status = guessed.status,
    attempts = guessed.attempts,
    verify_time = guessed.verify_time,
    verify_request_id = guessed.verify_request_id
FROM {guessed_otp:rows} AS guessed ({guessed_otp})
WHERE otps.organization_id = guessed.organization_id
    AND otps.organization_id = ANY(%(organization_id)s) -- shard
    AND otps.otp_id = guessed.otp_id AND otps.otp_id >= %(first_otp_id)s;

-- create_guess_budgets
INSERT INTO guess_budgets (organization_id, destination_digest, last_guess_time)
SELECT missing.organization_id, missing.destination_digest, %(now)s
FROM unnest(%(organization_ids)s::text[], %(destination_digests)s::bytea[])
    AS missing (organization_id, destination_digest)
ON CONFLICT DO NOTHING;

-- write_guess_budgets
-- A row for each guess, since an array in PostgreSQL cannot hold arrays of different lengths.
UPDATE guess_budgets
SET wrong_guess_times = guessed.wrong_guess_times,
    last_guess_time = guessed.last_guess_time
FROM (
    SELECT organization_id, destination_digest, array_agg(guess_time ORDER BY guess_time) AS wrong_guess_times,
        max(guess_time) AS last_guess_time
    FROM unnest(%(organization_ids)s::text[], %(destination_digests)s::bytea[], %(guess_times)s::timestamptz[])
        AS guess (organization_id, destination_digest, guess_time)
    GROUP BY organization_id, destination_digest
) AS guessed
WHERE guess_budgets.organization_id = guessed.organization_id
    AND guess_budgets.organization_id = ANY(%(organization_ids)s) -- shard
    AND guess_budgets.destination_digest = guessed.destination_digest;
