-- When the fallbacks of a delivery that was sent, or may have been, are looked at again: for a failure that is reported
-- later, and after the delay of a fallback. Such a row has next_attempt_time 'infinity', so that no replica, also of the
-- previous version, sends the delivery itself again.
ALTER TABLE outbox ADD COLUMN fall_back_time timestamptz;

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
