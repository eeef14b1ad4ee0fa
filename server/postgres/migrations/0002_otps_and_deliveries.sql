-- OTPs, their deliveries, the outbox of deliveries, and the budgets of wrong guesses.
--
-- No foreign keys between these tables: they are written together in one transaction under the account's lock and
-- deleted together by retention, and a check per row would cost every send.
--
-- vacuum_truncate is off: a table that was emptied keeps its pages, so that the planner never estimates that reading
-- the whole table is free.

CREATE TABLE otps (
    organization_id text NOT NULL,
    otp_id uuid NOT NULL,
    purpose text NOT NULL,
    locale text NOT NULL,
    destination_digest bytea NOT NULL,
    code_key_id text NOT NULL,
    code_length smallint NOT NULL,
    context_digest bytea NOT NULL,
    web_otp_domain text NOT NULL,
    metadata jsonb NOT NULL,
    status text NOT NULL DEFAULT 'PENDING',
    attempts smallint NOT NULL DEFAULT 0,
    max_attempts smallint NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    verify_time timestamptz,
    verify_request_id uuid,
    PRIMARY KEY (organization_id, otp_id),
    CONSTRAINT status_is_known CHECK (status IN ('PENDING', 'VERIFIED', 'CANCELED', 'ATTEMPTS_EXHAUSTED')),
    CONSTRAINT attempts_stay_within_the_maximum CHECK (attempts BETWEEN 0 AND max_attempts),
    CONSTRAINT a_verified_otp_has_its_time CHECK ((status = 'VERIFIED') = (verify_time IS NOT NULL))
) WITH (fillfactor = 85, vacuum_truncate = off);

CREATE TABLE deliveries (
    organization_id text NOT NULL,
    delivery_id uuid NOT NULL,
    otp_id uuid NOT NULL,
    request_id uuid NOT NULL,
    request_fingerprint bytea NOT NULL,
    purpose text NOT NULL,
    channel text NOT NULL,
    destination_digest bytea NOT NULL,
    destination_sealed bytea,
    masked_destination text NOT NULL,
    credits bigint NOT NULL,
    ledger_sequence bigint NOT NULL,
    balance_after bigint NOT NULL,
    status text NOT NULL DEFAULT 'QUEUED',
    refunded boolean NOT NULL DEFAULT false,
    provider text NOT NULL DEFAULT '',
    provider_message_id text NOT NULL DEFAULT '',
    failure_reason text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (delivery_id, organization_id),
    CONSTRAINT one_delivery_per_request_id UNIQUE (request_id, organization_id),
    CONSTRAINT channel_is_known CHECK (channel IN ('EMAIL', 'WHATSAPP', 'SMS')),
    CONSTRAINT status_is_known CHECK (status IN ('QUEUED', 'SENT', 'DELIVERED', 'FAILED', 'UNKNOWN')),
    CONSTRAINT a_delivery_costs_something CHECK (credits > 0),
    CONSTRAINT only_a_failed_delivery_is_refunded CHECK (status = 'FAILED' OR NOT refunded)
) WITH (fillfactor = 85, vacuum_truncate = off);
-- Each index of this table begins with a different column, so that a plan cannot use the wrong one, even if it is made
-- while the table is empty. Ids are ordered by time: a new row is added at the end of an index that begins with an id,
-- for any number of organizations.
CREATE INDEX deliveries_of_an_otp ON deliveries (otp_id, organization_id);
CREATE INDEX deliveries_to_a_destination ON deliveries (destination_digest, organization_id, create_time);

-- A row for each delivery without a final outcome. It is separate from deliveries so that recording an outcome changes
-- no index of that large table. next_attempt_time is the lease: the replica that moved it into the future runs the
-- delivery.
CREATE TABLE outbox (
    organization_id text NOT NULL,
    delivery_id uuid NOT NULL,
    otp_id uuid NOT NULL,
    fallbacks_sealed bytea,
    attempts smallint NOT NULL DEFAULT 0,
    next_attempt_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, delivery_id)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);

-- Wrong guesses per destination, across all its OTPs.
CREATE TABLE guess_budgets (
    organization_id text NOT NULL,
    destination_digest bytea NOT NULL,
    wrong_guesses integer NOT NULL,
    window_start_time timestamptz NOT NULL,
    last_guess_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, destination_digest),
    CONSTRAINT wrong_guesses_are_counted CHECK (wrong_guesses >= 0)
) WITH (vacuum_truncate = off);
