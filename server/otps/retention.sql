-- read_progress
SELECT last_otp_id
FROM erased_destinations;

-- find_next_otps
-- A range of ids, erased or not, so that every batch takes equally long.
SELECT organization_id, otp_id
FROM deliveries
WHERE otp_id > %(last_otp_id)s AND otp_id < %(end_id)s
ORDER BY otp_id
LIMIT %(limit)s;

-- erase_destinations
UPDATE deliveries
SET destination_sealed = NULL
WHERE organization_id = %(organization_id)s AND otp_id = ANY(%(ids)s) AND otp_id >= %(first_otp_id)s
    AND destination_sealed IS NOT NULL;

-- advance_progress
-- Never back: another replica may have advanced further.
UPDATE erased_destinations
SET last_otp_id = %(last_otp_id)s
WHERE last_otp_id < %(last_otp_id)s;

-- find_deliveries_to
SELECT delivery_id, otp_id
FROM deliveries
WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(digests)s)
LIMIT %(limit)s;

-- erase_otps
-- An OTP that was first sent elsewhere keeps the digest of that destination.
UPDATE otps
SET destination_digest = CASE
        WHEN substring(destination_digest FOR 16) = ANY(%(digests)s) THEN ''
        ELSE destination_digest
    END,
    metadata = '{{}}',
    status = CASE WHEN status = 'PENDING' THEN 'CANCELED' ELSE status END
WHERE organization_id = %(organization_id)s AND otp_id = ANY(%(otp_ids)s);

-- erase_deliveries
UPDATE deliveries
SET destination_digest = '', destination_sealed = NULL, masked_destination = ''
WHERE organization_id = %(organization_id)s AND delivery_id = ANY(%(delivery_ids)s);

-- remove_guess_budgets_of
DELETE FROM guess_budgets
WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(digests)s);

-- remove_suppressions_of
DELETE FROM suppressions
WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(digests)s);

-- remove_week
SELECT remove_week(%(table)s, %(before)s);

-- create_partitions
SELECT create_partitions(%(table)s);

-- find_old_requests
SELECT organization_id, request_id, create_time
FROM requests
WHERE create_time >= %(after)s AND create_time < %(before)s
ORDER BY create_time
LIMIT %(limit)s;

-- remove_requests
-- Nothing locks a request.
DELETE FROM requests
WHERE organization_id = %(organization_id)s AND request_id = ANY(%(ids)s) AND create_time < %(before)s;

-- find_old_guess_budgets
SELECT organization_id, destination_digest, last_guess_time
FROM guess_budgets
WHERE last_guess_time >= %(after)s AND last_guess_time < %(before)s
ORDER BY last_guess_time
LIMIT %(limit)s;

-- remove_guess_budgets
-- Skips a locked row: a guess is changing it.
DELETE FROM guess_budgets
WHERE organization_id = %(organization_id)s AND destination_digest IN (
    SELECT destination_digest
    FROM guess_budgets
    WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(ids)s)
        AND last_guess_time < %(before)s
    FOR UPDATE SKIP LOCKED
);

-- find_old_unverified
SELECT organization_id, area, window_start_time
FROM unverified_credits
WHERE window_start_time >= %(after)s AND window_start_time < %(before)s
ORDER BY window_start_time
LIMIT %(limit)s;

-- remove_unverified
-- Skips a locked row: a send is counted in it, in a new window.
DELETE FROM unverified_credits
WHERE organization_id = %(organization_id)s AND area IN (
    SELECT area
    FROM unverified_credits
    WHERE organization_id = %(organization_id)s AND area = ANY(%(ids)s)
        AND window_start_time < %(before)s
    FOR UPDATE SKIP LOCKED
);

-- find_old_suppressions
SELECT organization_id, destination_digest, expire_time
FROM suppressions
WHERE expire_time >= %(after)s AND expire_time < %(before)s
ORDER BY expire_time
LIMIT %(limit)s;

-- remove_suppressions
DELETE FROM suppressions
WHERE organization_id = %(organization_id)s AND destination_digest = ANY(%(ids)s) AND expire_time < %(before)s;
