-- An operator's suspension of an organization, in the row that every send locks anyway; suspend_time is NULL without one.
ALTER TABLE accounts
    ADD COLUMN suspend_time timestamptz,
    ADD COLUMN suspend_reason text,
    ADD COLUMN suspended_by text;
