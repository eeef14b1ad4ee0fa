-- find_indexes
-- How to drop and to create again each index and constraint of the tables that are filled.
SELECT table_name, drop_statement, create_statement
FROM (
    SELECT 2 AS position, oid, conrelid::regclass::text AS table_name,
        format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname) AS drop_statement,
        format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))
            AS create_statement
    FROM pg_constraint
    WHERE contype IN ('p', 'u') AND conrelid::regclass::text = ANY(%(tables)s)
    UNION ALL
    SELECT 1, indexrelid, indrelid::regclass::text, format('DROP INDEX %%s', indexrelid::regclass),
        replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ')  -- of all partitions
    FROM pg_index
    WHERE indrelid::regclass::text = ANY(%(tables)s)
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
) AS index
ORDER BY position, oid;

-- create_sends
-- Sends as they would have come in turn to `organizations` organizations in the 400 days before `until`. Ids are of
-- version 7 as the server makes them, and follow from the number alone, so that all tables agree on them.
CREATE FUNCTION sends(entries bigint, first bigint, last bigint, organizations bigint, until float8)
RETURNS TABLE (
    organization_id text, sequence bigint, balance_after bigint, create_time timestamptz, delivery_id uuid, otp_id uuid,
    request_id uuid, digest bytea
)
LANGUAGE sql STABLE AS $$
SELECT 'spread-' || number % organizations, number / organizations + 2, 1000000000 - number / organizations - 1,
    to_timestamp(unix_time),
    (time_hex || '7' || substr(hash, 1, 3) || 'a' || substr(hash, 4, 15))::uuid,
    (time_hex || '7' || substr(hash, 1, 3) || 'b' || substr(hash, 4, 15))::uuid,
    md5('request ' || number)::uuid, uuid_send(md5('destination ' || number)::uuid)
FROM (
    SELECT number, md5(number::text) AS hash, unix_time, lpad(to_hex((unix_time * 1000)::bigint), 12, '0') AS time_hex
    FROM (
        SELECT number, until - 86400.0 * 400 * (1 - number::float8 / entries) AS unix_time
        FROM generate_series(first, last) AS number
    ) AS timed
) AS hashed
$$;

-- create_partitions
-- Of the 80 days whose sends have OTPs and deliveries.
SELECT create_partition(parent, week::date)
FROM unnest(ARRAY['otps', 'deliveries']) AS parent
CROSS JOIN generate_series(date_trunc('week', now() - interval '12 weeks'), now(), interval '1 week') AS week;

-- insert_ledger_entries
INSERT INTO ledger_entries (organization_id, sequence, kind, credits, balance_after, reference_id, create_time)
SELECT organization_id, sequence, 'SEND', -1, balance_after, delivery_id, create_time
FROM sends(%(entries)s, %(first)s, %(last)s, %(organizations)s, %(until)s);

-- insert_otps
INSERT INTO otps (
    organization_id, otp_id, purpose, channel, locale, destination_digest, code_key_id, code_length, context_digest,
    web_otp_domain, metadata, max_attempts, create_time, expire_time
)
SELECT organization_id, otp_id, 'login', 'EMAIL', 'id-ID', digest, 'bench', 6, '', '', jsonb_build_object(), 5,
    create_time, create_time + interval '5 minutes'
FROM sends(%(entries)s, greatest(%(first)s, %(first_kept)s), %(last)s, %(organizations)s, %(until)s);

-- insert_deliveries
INSERT INTO deliveries (
    organization_id, delivery_id, otp_id, purpose, channel, destination_digest, destination_sealed,
    masked_destination, credits, ledger_sequence, balance_after, status, provider, create_time, update_time
)
SELECT organization_id, delivery_id, otp_id, 'login', 'EMAIL', digest, digest || digest || digest,
    'p***@example.com', 1, sequence, balance_after, 'SENT', 'console', create_time, create_time
FROM sends(%(entries)s, greatest(%(first)s, %(first_kept)s), %(last)s, %(organizations)s, %(until)s);

-- insert_requests
INSERT INTO requests (organization_id, request_id, rpc, fingerprint, answer_id, create_time)
SELECT organization_id, request_id, 'SendOtp', digest, delivery_id, create_time
FROM sends(%(entries)s, greatest(%(first)s, %(first_kept)s), %(last)s, %(organizations)s, %(until)s);

-- write_balances
UPDATE accounts
SET available_credits = 1000000000 - sent.count, last_sequence = 1 + sent.count
FROM (
    SELECT 'spread-' || number AS organization_id,
        %(entries)s / %(organizations)s
            + CASE WHEN number < %(entries)s %% %(organizations)s THEN 1 ELSE 0 END AS count
    FROM generate_series(0, %(organizations)s - 1) AS number
) AS sent
WHERE accounts.organization_id = sent.organization_id;

-- drop_sends
DROP FUNCTION sends;
