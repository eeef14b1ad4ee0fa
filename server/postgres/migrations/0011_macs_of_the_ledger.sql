-- MACs of the ledger, made with keys that are not in the database: they show entries that were added, changed or removed
-- past the server, also by the schema's owner.
--
-- They are in tables of their own, because a column of ledger_entries would cost every send.

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
