-- What organizations have chosen for their sends: a row for each change, which is never updated or removed. The rows are
-- the history, and deliveries name the version that they were sent with.
--
-- accounts.settings_version is the version in force, 0 without one: a send reads it with the row that it locks anyway,
-- and so knows whether what its process remembers of the settings is current. An old replica's sends have version 0.
CREATE TABLE organization_settings (
    organization_id text NOT NULL,
    version bigint NOT NULL,
    settings jsonb NOT NULL,
    changed_fields text[] NOT NULL,
    updated_by text NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, version),
    CONSTRAINT versions_begin_at_1 CHECK (version >= 1),
    CONSTRAINT a_change_has_its_author CHECK (updated_by <> '')
);
-- For the processes, which look for new rows every few seconds.
CREATE INDEX organization_settings_by_time ON organization_settings (create_time);

ALTER TABLE accounts ADD COLUMN settings_version bigint NOT NULL DEFAULT 0;
