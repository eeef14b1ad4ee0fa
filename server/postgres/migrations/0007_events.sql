-- Events: what has changed for an organization that wants to know of it, for WatchEvents.
--
-- An event is written in the transaction of the change. It gets its number under the lock of the organization's row in
-- event_streams, which is the last lock of every transaction: so an organization's numbers have no gaps, and are
-- committed in their order. A sequence would give numbers in another order than that of the commits.
--
-- expired_until: the OTPs that expired until then have their events.

CREATE TABLE event_streams (
    organization_id text NOT NULL,
    is_on boolean NOT NULL,
    last_number bigint NOT NULL DEFAULT 0,
    expired_until timestamptz NOT NULL,
    change_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id)
) WITH (fillfactor = 50, vacuum_truncate = off);
-- For the replicas, which read who has switched events on or off.
CREATE INDEX event_streams_by_change ON event_streams (change_time);

-- details has the fields of the kind's message in pulsa.event.v1, with the names of statuses as in the database.
CREATE TABLE events (
    organization_id text NOT NULL,
    number bigint NOT NULL,
    kind text NOT NULL,
    details jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, number),
    CONSTRAINT kind_is_known CHECK (
        kind IN (
            'DELIVERY_CHANGED', 'OTP_ENDED', 'BALANCE_LOW', 'BALANCE_RECOVERED', 'TOP_UP_CHANGED', 'LIMIT_REACHED'
        )
    )
) WITH (vacuum_truncate = off);
