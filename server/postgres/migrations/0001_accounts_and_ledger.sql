-- Accounts with their credits, the ledger of every change, and the notices to billing contacts.
--
-- Each table of an organization's rows begins with organization_id and has it in every key, so that Citus can shard the
-- tables by it. Constraints are named as the sentences that they enforce: they are the last check of the money rules.

CREATE TABLE accounts (
    organization_id text NOT NULL,
    available_credits bigint NOT NULL DEFAULT 0,
    last_sequence bigint NOT NULL DEFAULT 0,
    low_balance_threshold bigint NOT NULL,
    low_balance_since timestamptz,
    alert_email text,
    stripe_customer_id text,
    window_start_time timestamptz NOT NULL,
    window_send_count bigint NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id),
    CONSTRAINT organization_id_has_1_to_64_characters CHECK (length(organization_id) BETWEEN 1 AND 64),
    CONSTRAINT available_credits_are_never_negative CHECK (available_credits >= 0),
    CONSTRAINT last_sequence_is_never_negative CHECK (last_sequence >= 0)
) WITH (fillfactor = 20);
-- Every send updates its account's row. Free space on the page, and no index on a column that changes, keep that update
-- on the page (HOT). An early vacuum keeps the table small.
ALTER TABLE accounts SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

CREATE TABLE ledger_entries (
    organization_id text NOT NULL,
    sequence bigint NOT NULL,
    kind text NOT NULL,
    credits bigint NOT NULL,
    balance_after bigint NOT NULL,
    reference_id uuid NOT NULL,
    reason text NOT NULL DEFAULT '',
    created_by text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, sequence),
    CONSTRAINT one_entry_per_kind_and_reference UNIQUE (reference_id, kind, organization_id),
    CONSTRAINT sequence_begins_at_1 CHECK (sequence >= 1),
    CONSTRAINT balance_after_is_never_negative CHECK (balance_after >= 0),
    CONSTRAINT kind_gives_the_sign_of_credits CHECK (
        (kind = 'SEND' AND credits < 0)
        OR (kind IN ('TOP_UP', 'REFUND') AND credits > 0)
        OR (kind = 'ADJUSTMENT' AND credits <> 0)
    )
);

-- The outbox of mails to the billing contact. The unique constraint admits one notice per cause, even when the work
-- that causes it is repeated.
CREATE TABLE notices (
    organization_id text NOT NULL,
    notice_id uuid NOT NULL,
    kind text NOT NULL,
    reference_id text NOT NULL,
    email text NOT NULL,
    details jsonb NOT NULL,
    status text NOT NULL DEFAULT 'PENDING',
    attempts smallint NOT NULL DEFAULT 0,
    next_attempt_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, notice_id),
    CONSTRAINT one_notice_per_cause UNIQUE (organization_id, kind, reference_id),
    CONSTRAINT kind_is_known CHECK (kind IN ('PAYMENT_CONFIRMED', 'BALANCE_LOW')),
    CONSTRAINT status_is_known CHECK (status IN ('PENDING', 'SENT', 'FAILED'))
);
CREATE INDEX notices_to_send ON notices (next_attempt_time) WHERE status = 'PENDING';
