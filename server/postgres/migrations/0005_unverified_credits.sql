-- Budgets against SMS pumping: the credits of sends to each country's numbers whose codes were not verified.
--
-- Not in accounts: a verification lowers it, and must not wait for the account's lock, which sends hold.

CREATE TABLE unverified_credits (
    organization_id text NOT NULL,
    country text NOT NULL,
    window_start_time timestamptz NOT NULL,
    credits bigint NOT NULL,
    PRIMARY KEY (organization_id, country),
    CONSTRAINT unverified_credits_are_counted CHECK (credits >= 0)
) WITH (fillfactor = 50, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- country is empty for e-mail. to_phone is true if a delivery of the OTP may be to a phone: only then a verification
-- has to lower a budget.
ALTER TABLE deliveries ADD COLUMN country text NOT NULL DEFAULT '';
ALTER TABLE otps ADD COLUMN to_phone boolean NOT NULL DEFAULT false;
