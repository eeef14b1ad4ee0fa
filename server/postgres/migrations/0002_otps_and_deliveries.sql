-- OTPs, their deliveries, the outbox of deliveries, and the budgets of wrong guesses and of unverified credits.
--
-- OTPs and deliveries are partitioned by the OTP's id, which is ordered by time: an OTP and all its deliveries are in
-- partitions of the same week, and retention drops both. A statement without `otp_id = …` has a lower bound of otp_id as
-- a parameter, so that PostgreSQL opens only the partitions from there on. An upper bound too would let a plan that is
-- made while a partition is empty read the whole range, instead of the rows by their keys.
--
-- No foreign keys between these tables: they are written together in one transaction under the account's lock and
-- removed together by retention, and a check per row would cost every send.
--
-- vacuum_truncate is off: a table that was emptied keeps its pages, so that the planner never estimates that reading
-- the whole table is free.

CREATE DOMAIN attempt_count AS smallint CONSTRAINT attempts_are_counted CHECK (VALUE >= 0);
CREATE DOMAIN otp_status AS text
    CONSTRAINT status_is_known CHECK (VALUE IN ('PENDING', 'VERIFIED', 'CANCELED', 'ATTEMPTS_EXHAUSTED'));
CREATE DOMAIN channel_name AS text CONSTRAINT channel_is_known CHECK (VALUE IN ('EMAIL', 'WHATSAPP', 'SMS'));
CREATE DOMAIN delivery_status AS text
    CONSTRAINT status_is_known CHECK (VALUE IN ('QUEUED', 'SENT', 'DELIVERED', 'FAILED', 'UNKNOWN'));
CREATE DOMAIN delivery_credits AS bigint CONSTRAINT a_delivery_costs_something CHECK (VALUE > 0);

-- channel is that of the first delivery, for the usage. to_phone is true if a delivery of the OTP may be to a phone: only
-- then a verification has to lower a budget.
CREATE TABLE otps (
    organization_id text NOT NULL,
    otp_id uuid NOT NULL,
    purpose text NOT NULL,
    channel channel_name NOT NULL,
    locale text NOT NULL,
    destination_digest bytea NOT NULL,
    code_key_id text NOT NULL,
    code_length smallint NOT NULL,
    context_digest bytea NOT NULL,
    web_otp_domain text NOT NULL,
    metadata jsonb NOT NULL,
    status otp_status NOT NULL DEFAULT 'PENDING',
    attempts attempt_count NOT NULL DEFAULT 0,
    max_attempts smallint NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    verify_time timestamptz,
    verify_request_id uuid,
    to_phone boolean NOT NULL DEFAULT false,
    PRIMARY KEY (organization_id, otp_id),
    CONSTRAINT attempts_stay_within_the_maximum CHECK (attempts <= max_attempts),
    CONSTRAINT a_verified_otp_has_its_time CHECK ((status = 'VERIFIED') = (verify_time IS NOT NULL))
) PARTITION BY RANGE (otp_id);

-- areas are those of its recipient, separated by spaces: it counts in the unverified credits of each.
--
-- earlier_changes are the changes of status before the last one, which is in status and update_time: [["UNKNOWN",
-- "2026-…"], …]. Only reports write it: a send and its outcome, which is the first change, cost nothing more.
CREATE TABLE deliveries (
    organization_id text NOT NULL,
    delivery_id uuid NOT NULL,
    otp_id uuid NOT NULL,
    purpose text NOT NULL,
    channel channel_name NOT NULL,
    destination_digest bytea NOT NULL,
    destination_sealed bytea,
    masked_destination text NOT NULL,
    credits delivery_credits NOT NULL,
    ledger_sequence bigint NOT NULL,
    balance_after bigint NOT NULL,
    status delivery_status NOT NULL DEFAULT 'QUEUED',
    refunded boolean NOT NULL DEFAULT false,
    provider text NOT NULL DEFAULT '',
    provider_message_id text NOT NULL DEFAULT '',
    failure_reason text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    areas text NOT NULL DEFAULT '',
    earlier_changes jsonb,
    PRIMARY KEY (delivery_id, organization_id, otp_id),
    CONSTRAINT only_a_failed_delivery_is_refunded CHECK (status = 'FAILED' OR NOT refunded)
) PARTITION BY RANGE (otp_id);
-- Each index of this table begins with a different column, so that a plan cannot use the wrong one, even if it is made
-- while the table is empty. Ids are ordered by time: a new row is added at the end of an index that begins with an id,
-- for any number of organizations.
CREATE INDEX deliveries_of_an_otp ON deliveries (otp_id, organization_id);
CREATE INDEX deliveries_to_a_destination ON deliveries (destination_digest, organization_id, create_time);

-- What organizations sent on days whose OTPs and deliveries were removed, in part or all; kept for good. The usage of a
-- day is what is here and what the remaining deliveries make.
CREATE TABLE daily_usage (
    organization_id text NOT NULL,
    day date NOT NULL,
    channel channel_name NOT NULL,
    sends bigint NOT NULL,
    credits bigint NOT NULL,
    otps bigint NOT NULL,
    verified_otps bigint NOT NULL,
    PRIMARY KEY (organization_id, day, channel)
);

-- One row: the id of the last OTP up to which the destinations of all deliveries are erased. An index of the remaining
-- ones would cost every send.
CREATE TABLE erased_destinations (last_otp_id uuid NOT NULL);
INSERT INTO erased_destinations (last_otp_id) VALUES ('00000000-0000-0000-0000-000000000000');

-- A row for each delivery without a final outcome. It is separate from deliveries so that recording an outcome changes
-- no index of that large table. next_attempt_time is the lease: the replica that moved it into the future runs the
-- delivery.
--
-- fall_back_time is when the fallbacks of a delivery that was sent, or may have been, are looked at again: for a failure
-- that is reported later, and after the delay of a fallback. Such a row has next_attempt_time 'infinity', so that no
-- replica sends the delivery itself again.
CREATE TABLE outbox (
    organization_id text NOT NULL,
    delivery_id uuid NOT NULL,
    otp_id uuid NOT NULL,
    fallbacks_sealed bytea,
    attempts smallint NOT NULL DEFAULT 0,
    next_attempt_time timestamptz NOT NULL,
    fall_back_time timestamptz,
    PRIMARY KEY (organization_id, delivery_id)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
-- Finds due deliveries without reading the outbox, which every replica does each second. Most rows have the same lease: a
-- new row goes to the index's end, and the rows of a batch share an entry.
CREATE INDEX outbox_by_time ON outbox (next_attempt_time);
-- Finds the fallbacks that are due. Rows of deliveries that wait for their outcome are not in it: a send does not write it.
CREATE INDEX outbox_by_fall_back_time ON outbox (fall_back_time) WHERE fall_back_time IS NOT NULL;

-- Addresses that refused an organization's mail for good, or whose owner complained: it gets no mail of that
-- organization until then.
CREATE TABLE suppressions (
    organization_id text NOT NULL,
    suppression_id uuid NOT NULL,
    destination_digest bytea NOT NULL,
    masked_destination text NOT NULL,
    reason text NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, destination_digest),
    CONSTRAINT reason_is_known CHECK (reason IN ('BOUNCE', 'COMPLAINT'))
) WITH (vacuum_truncate = off);
CREATE INDEX suppressions_by_time ON suppressions (create_time);
CREATE INDEX suppressions_that_end ON suppressions (expire_time);

-- Wrong guesses per destination, across all its OTPs: the time of each, so that the budget holds for every interval of
-- its length. With a count per fixed window, an interval across two windows could have nearly twice as many.
CREATE TABLE guess_budgets (
    organization_id text NOT NULL,
    destination_digest bytea NOT NULL,
    last_guess_time timestamptz NOT NULL,
    wrong_guess_times timestamptz[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (organization_id, destination_digest),
    -- The maximum of the setting.
    CONSTRAINT no_more_than_100_wrong_guesses_count CHECK (cardinality(wrong_guess_times) <= 100)
) WITH (vacuum_truncate = off);
-- For retention.
CREATE INDEX guess_budgets_by_time ON guess_budgets (last_guess_time);

-- Budgets against SMS pumping: the credits of sends to each area's numbers whose codes were not verified.
--
-- Not in accounts: a verification lowers it, and must not wait for the account's lock, which sends hold. An area is a
-- country (ID) or the keyed digest of a number's first digits. The digits themselves, together with a masked number,
-- would leave few numbers to try.
CREATE TABLE unverified_credits (
    organization_id text NOT NULL,
    area text NOT NULL,
    window_start_time timestamptz NOT NULL,
    credits credit_count NOT NULL,
    PRIMARY KEY (organization_id, area)
) WITH (fillfactor = 50, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
-- For retention. Within a window the time does not change, so updates stay on the page (HOT).
CREATE INDEX unverified_credits_by_time ON unverified_credits (window_start_time);
