-- Domains for the checks of single values in the tables that a send writes.
--
-- PostgreSQL parses a table's checks for each statement that writes to it, but caches those of a domain. The checks of
-- the tables below took 6 % of a lone send. A check of two columns stays with its table. organization_id stays text,
-- because Citus shards by it.
--
-- A domain gets its constraint after the columns have its type, because the tables are then read and not rewritten.

CREATE DOMAIN credit_count AS bigint;
CREATE DOMAIN entry_count AS bigint;
CREATE DOMAIN entry_sequence AS bigint;
CREATE DOMAIN entry_kind AS text;
CREATE DOMAIN entry_credits AS bigint;
CREATE DOMAIN attempt_count AS smallint;
CREATE DOMAIN otp_status AS text;
CREATE DOMAIN channel_name AS text;
CREATE DOMAIN delivery_status AS text;
CREATE DOMAIN delivery_credits AS bigint;

ALTER TABLE accounts
    DROP CONSTRAINT available_credits_are_never_negative,
    DROP CONSTRAINT last_sequence_is_never_negative;
ALTER TABLE accounts
    ALTER available_credits TYPE credit_count,
    ALTER last_sequence TYPE entry_count;

ALTER TABLE ledger_entries
    DROP CONSTRAINT sequence_begins_at_1,
    DROP CONSTRAINT balance_after_is_never_negative,
    DROP CONSTRAINT kind_gives_the_sign_of_credits;
ALTER TABLE ledger_entries
    ALTER sequence TYPE entry_sequence,
    ALTER kind TYPE entry_kind,
    ALTER credits TYPE entry_credits,
    ALTER balance_after TYPE credit_count,
    ADD CONSTRAINT kind_gives_the_sign_of_credits CHECK ((kind = 'SEND') = (credits < 0) OR kind = 'ADJUSTMENT');

ALTER TABLE otps
    DROP CONSTRAINT status_is_known,
    DROP CONSTRAINT attempts_stay_within_the_maximum,
    DROP CONSTRAINT a_verified_otp_has_its_time;
ALTER TABLE otps
    ALTER status TYPE otp_status,
    ALTER attempts TYPE attempt_count,
    ADD CONSTRAINT attempts_stay_within_the_maximum CHECK (attempts <= max_attempts),
    ADD CONSTRAINT a_verified_otp_has_its_time CHECK ((status = 'VERIFIED') = (verify_time IS NOT NULL));

ALTER TABLE deliveries
    DROP CONSTRAINT channel_is_known,
    DROP CONSTRAINT status_is_known,
    DROP CONSTRAINT a_delivery_costs_something,
    DROP CONSTRAINT only_a_failed_delivery_is_refunded;
ALTER TABLE deliveries
    ALTER channel TYPE channel_name,
    ALTER credits TYPE delivery_credits,
    ALTER status TYPE delivery_status,
    ADD CONSTRAINT only_a_failed_delivery_is_refunded CHECK (status = 'FAILED' OR NOT refunded);

ALTER TABLE unverified_credits DROP CONSTRAINT unverified_credits_are_counted;
ALTER TABLE unverified_credits ALTER credits TYPE credit_count;

ALTER DOMAIN credit_count ADD CONSTRAINT credits_are_never_negative CHECK (VALUE >= 0);
ALTER DOMAIN entry_count ADD CONSTRAINT entries_are_counted CHECK (VALUE >= 0);
ALTER DOMAIN entry_sequence ADD CONSTRAINT sequence_begins_at_1 CHECK (VALUE >= 1);
ALTER DOMAIN entry_kind ADD CONSTRAINT kind_is_known CHECK (VALUE IN ('TOP_UP', 'SEND', 'REFUND', 'ADJUSTMENT'));
ALTER DOMAIN entry_credits ADD CONSTRAINT an_entry_changes_the_balance CHECK (VALUE <> 0);
ALTER DOMAIN attempt_count ADD CONSTRAINT attempts_are_counted CHECK (VALUE >= 0);
ALTER DOMAIN otp_status ADD CONSTRAINT status_is_known
    CHECK (VALUE IN ('PENDING', 'VERIFIED', 'CANCELED', 'ATTEMPTS_EXHAUSTED'));
ALTER DOMAIN channel_name ADD CONSTRAINT channel_is_known CHECK (VALUE IN ('EMAIL', 'WHATSAPP', 'SMS'));
ALTER DOMAIN delivery_status ADD CONSTRAINT status_is_known
    CHECK (VALUE IN ('QUEUED', 'SENT', 'DELIVERED', 'FAILED', 'UNKNOWN'));
ALTER DOMAIN delivery_credits ADD CONSTRAINT a_delivery_costs_something CHECK (VALUE > 0);
