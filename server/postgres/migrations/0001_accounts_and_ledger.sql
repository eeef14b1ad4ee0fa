-- Accounts with their credits, the ledger of every change with its MACs, the requests that made the changes, and the
-- notices to billing contacts.
--
-- Each table of an organization's rows has organization_id in every key, so that Citus can shard the tables by it.
-- Constraints are named as the sentences that they enforce: they are the last check of the money rules.
--
-- Checks of single values are in domains: PostgreSQL parses a table's checks for each statement that writes to it, but
-- caches those of a domain. As checks of the tables they took 6 % of a lone send. organization_id stays text, because
-- Citus shards by it.

CREATE DOMAIN credit_count AS bigint CONSTRAINT credits_are_never_negative CHECK (VALUE >= 0);
CREATE DOMAIN entry_count AS bigint CONSTRAINT entries_are_counted CHECK (VALUE >= 0);
CREATE DOMAIN entry_sequence AS bigint CONSTRAINT sequence_begins_at_1 CHECK (VALUE >= 1);
CREATE DOMAIN entry_kind AS text CONSTRAINT kind_is_known CHECK (VALUE IN ('TOP_UP', 'SEND', 'REFUND', 'ADJUSTMENT'));
CREATE DOMAIN entry_credits AS bigint CONSTRAINT an_entry_changes_the_balance CHECK (VALUE <> 0);
CREATE DOMAIN spending_rpc AS text
    CONSTRAINT rpc_is_known CHECK (VALUE IN ('SendOtp', 'ResendOtp', 'CreateTopUp', 'AdjustCredits'));

-- billing_name, of the latest top-up, and the language and time zone of alert_email are for notices.
--
-- suspend_time is that of an operator's suspension, which every send reads with the row that it locks anyway; NULL without
-- one.
CREATE TABLE accounts (
    organization_id text NOT NULL,
    available_credits credit_count NOT NULL DEFAULT 0,
    last_sequence entry_count NOT NULL DEFAULT 0,
    low_balance_threshold bigint NOT NULL,
    low_balance_since timestamptz,
    alert_email text,
    alert_locale text NOT NULL DEFAULT '',
    alert_time_zone text NOT NULL DEFAULT '',
    billing_name text NOT NULL DEFAULT '',
    stripe_customer_id text,
    window_start_time timestamptz NOT NULL,
    window_send_count bigint NOT NULL DEFAULT 0,
    suspend_time timestamptz,
    suspend_reason text,
    suspended_by text,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id),
    CONSTRAINT organization_id_has_1_to_64_characters CHECK (length(organization_id) BETWEEN 1 AND 64)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
-- Every send updates its account's row. Free space on the page, and no index on a column that changes, keep that update
-- on the page (HOT). An early vacuum keeps the table small.

CREATE TABLE ledger_entries (
    organization_id text NOT NULL,
    sequence entry_sequence NOT NULL,
    kind entry_kind NOT NULL,
    credits entry_credits NOT NULL,
    balance_after credit_count NOT NULL,
    reference_id uuid NOT NULL,
    reason text NOT NULL DEFAULT '',
    created_by text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, sequence),
    CONSTRAINT one_entry_per_kind_and_reference UNIQUE (reference_id, kind, organization_id),
    CONSTRAINT kind_gives_the_sign_of_credits CHECK ((kind = 'SEND') = (credits < 0) OR kind = 'ADJUSTMENT')
);

-- MACs of the ledger, made with keys that are not in the database: they show entries that were added, changed or removed
-- past the server, also by the schema's owner. They are in tables of their own, because a column of ledger_entries would
-- cost every send.

-- Of each entry that brings credits from outside: TOP_UP and ADJUSTMENT. It is written with its entry.
CREATE TABLE entry_macs (
    organization_id text NOT NULL,
    sequence bigint NOT NULL,
    key_id text NOT NULL,
    mac bytea NOT NULL,
    PRIMARY KEY (organization_id, sequence)
);

-- Of the entries after the organization's previous MAC up to last_sequence, made after the end of `day`. Each includes
-- the previous one. An organization has one for each day with entries, or several for a day with many.
CREATE TABLE ledger_macs (
    organization_id text NOT NULL,
    last_sequence bigint NOT NULL,
    day date NOT NULL,
    key_id text NOT NULL,
    mac bytea NOT NULL,
    PRIMARY KEY (organization_id, last_sequence)
);
CREATE INDEX ledger_macs_by_day ON ledger_macs (day);

-- Of all MACs of a day and the previous day's MAC. It is NULL, for one day at a time, until all of them are made.
CREATE TABLE ledger_days (
    day date NOT NULL,
    key_id text,
    mac bytea,
    PRIMARY KEY (day),
    CONSTRAINT a_mac_has_its_key CHECK ((mac IS NULL) = (key_id IS NULL))
);
CREATE UNIQUE INDEX one_unfinished_day ON ledger_days ((mac IS NULL)) WHERE mac IS NULL;

-- The request_ids of all calls that change a balance, in one table: a repeat is found whatever else has changed or was
-- removed since.
--
-- answer_id is what the first call made: a delivery, a top-up, or an adjustment's ledger entry.
--
-- request_id comes first in the key: callers that use time-ordered UUIDs add at its end, for any number of organizations.
-- Rows are also added at the end of the index by time, which retention needs. BRIN would be smaller, but would find
-- nearly all rows once removed rows have made room for new ones: a range of pages never forgets its oldest time.
CREATE TABLE requests (
    organization_id text NOT NULL,
    request_id uuid NOT NULL,
    rpc spending_rpc NOT NULL,
    fingerprint bytea NOT NULL,
    answer_id uuid NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (request_id, organization_id)
) WITH (vacuum_truncate = off);
CREATE INDEX requests_by_time ON requests (create_time);

-- The times that the database has lost, as it was restored to an earlier one: repeats of requests from then are refused.
-- A row for each restore; on Citus the table stays on the coordinator.
CREATE TABLE lost_times (
    restore_time timestamptz NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    PRIMARY KEY (restore_time),
    CONSTRAINT a_lost_time_ends_after_it_begins CHECK (start_time < end_time)
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
-- For retention.
CREATE INDEX notices_by_time ON notices (create_time) WHERE status <> 'PENDING';
