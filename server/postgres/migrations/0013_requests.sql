-- The request_ids of all calls that change a balance, in one table: a repeat is found whatever else has changed or was
-- removed since. OTPs and deliveries need no unique request_id any more and can be removed at another time.
--
-- answer_id is what the first call made: a delivery, a top-up, or an adjustment's ledger entry. An empty fingerprint is
-- that of a call before this table: its request_id and rpc alone say that it is a repeat.
--
-- request_id comes first in the key: callers that use time-ordered UUIDs add at its end, for any number of organizations.
-- Rows are also added at the end of the index by time, which retention needs. BRIN would be smaller, but would find
-- nearly all rows once removed rows have made room for new ones: a range of pages never forgets its oldest time.

CREATE DOMAIN spending_rpc AS text;
CREATE TABLE requests (
    organization_id text NOT NULL,
    request_id uuid NOT NULL,
    rpc spending_rpc NOT NULL,
    fingerprint bytea NOT NULL,
    answer_id uuid NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (request_id, organization_id)
) WITH (vacuum_truncate = off);
ALTER DOMAIN spending_rpc ADD CONSTRAINT rpc_is_known
    CHECK (VALUE IN ('SendOtp', 'ResendOtp', 'CreateTopUp', 'AdjustCredits'));
CREATE INDEX requests_by_time ON requests (create_time);

INSERT INTO requests (organization_id, request_id, rpc, fingerprint, answer_id, create_time)
SELECT organization_id, request_id,
    CASE WHEN row_number() OVER (PARTITION BY organization_id, otp_id ORDER BY delivery_id) = 1 THEN 'SendOtp' ELSE 'ResendOtp' END,
    '', delivery_id, create_time
FROM deliveries
WHERE request_fingerprint <> ''
ON CONFLICT DO NOTHING;
INSERT INTO requests (organization_id, request_id, rpc, fingerprint, answer_id, create_time)
SELECT organization_id, request_id, 'CreateTopUp', request_fingerprint, top_up_id, create_time
FROM top_ups
ON CONFLICT DO NOTHING;
INSERT INTO requests (organization_id, request_id, rpc, fingerprint, answer_id, create_time)
SELECT organization_id, reference_id, 'AdjustCredits', '', reference_id, create_time
FROM ledger_entries
WHERE kind = 'ADJUSTMENT'
ON CONFLICT DO NOTHING;

ALTER TABLE deliveries
    DROP COLUMN request_id,
    DROP COLUMN request_fingerprint;
ALTER TABLE top_ups
    DROP COLUMN request_id,
    DROP COLUMN request_fingerprint;
