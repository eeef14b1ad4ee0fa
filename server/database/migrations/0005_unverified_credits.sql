-- What bounds the loss to SMS pumping: how much went to each country's numbers without that any code came back.
--
-- Not in accounts, as a verification lowers it, and should not wait for the sends of its organization.

CREATE TABLE unverified_credits (
    organization_id text NOT NULL,
    country text NOT NULL,
    window_start_time timestamptz NOT NULL,
    credits bigint NOT NULL,
    PRIMARY KEY (organization_id, country),
    CONSTRAINT unverified_credits_are_counted CHECK (credits >= 0)
) WITH (fillfactor = 50, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- Empty for mail. Of an OTP, whether any of its deliveries may be to a phone: only then verifying it has to look.
ALTER TABLE deliveries ADD COLUMN country text NOT NULL DEFAULT '';
ALTER TABLE otps ADD COLUMN to_phone boolean NOT NULL DEFAULT false;
