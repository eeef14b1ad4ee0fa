-- Receipts of ledger entries: signed roots of Merkle trees, with which anyone who has the public key can check one entry.
--
-- They are made after a day's MACs, of the same ranges of entries, and are only added: the application's role may not
-- change or delete them.

-- Of the entries after first_sequence - 1 up to last_sequence. path leads from root to the root of the day's tree.
CREATE TABLE ledger_roots (
    organization_id text NOT NULL,
    last_sequence bigint NOT NULL,
    first_sequence bigint NOT NULL,
    day date NOT NULL,
    root bytea NOT NULL,
    path bytea NOT NULL,
    PRIMARY KEY (organization_id, last_sequence)
);

-- head is the text that is signed; it has the root of the day's tree, and the digest of the previous day's head. On Citus
-- the table stays on the coordinator.
CREATE TABLE ledger_heads (
    day date NOT NULL,
    head text NOT NULL,
    key_id text NOT NULL,
    signature bytea NOT NULL,
    PRIMARY KEY (day)
);
