-- remove_from_outbox
-- The outbox is often empty. A plan that is made then takes reading all of it for free, and would compare each of its
-- rows with each of a batch: `delivery_id = ANY`, here and below, confines every plan to the rows of the batch, and
-- IS TRUE keeps the index by time out of it.
DELETE FROM outbox
WHERE delivery_id = ANY(%(delivery_ids)s::uuid[])
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND fall_back_time IS NULL;

-- keep_fallbacks
-- A report may have come before the outcome, and set the time.
UPDATE outbox
SET fall_back_time = waiting.fall_back_time, next_attempt_time = 'infinity'
FROM unnest(%(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(fall_back_times)s::timestamptz[])
    AS waiting (organization_id, delivery_id, fall_back_time)
WHERE outbox.delivery_id = ANY(%(delivery_ids)s::uuid[])
    AND outbox.delivery_id = waiting.delivery_id
    AND outbox.organization_id = waiting.organization_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND outbox.fall_back_time IS NULL;

-- postpone_fallbacks
UPDATE outbox
SET fall_back_time = waiting.fall_back_time
FROM unnest(%(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(fall_back_times)s::timestamptz[])
    AS waiting (organization_id, delivery_id, fall_back_time)
WHERE outbox.delivery_id = ANY(%(delivery_ids)s::uuid[])
    AND outbox.delivery_id = waiting.delivery_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND outbox.organization_id = waiting.organization_id;

-- remove_fallbacks
DELETE FROM outbox
WHERE delivery_id = ANY(%(delivery_ids)s::uuid[])
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
;

-- remove_leased
-- Only while this replica holds the lease: a replica that took over has changed next_attempt_time, and may be sending.
DELETE FROM outbox
USING unnest(%(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(lease_expire_times)s::timestamptz[])
    AS leased (organization_id, delivery_id, lease_expire_time)
WHERE outbox.delivery_id = ANY(%(delivery_ids)s::uuid[])
    AND outbox.delivery_id = leased.delivery_id
    AND outbox.organization_id = leased.organization_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND (outbox.next_attempt_time = leased.lease_expire_time) IS TRUE
RETURNING outbox.organization_id, outbox.delivery_id;

-- record_outcomes
UPDATE deliveries
SET status = final.status,
    provider = final.provider,
    provider_message_id = final.provider_message_id,
    failure_reason = final.failure_reason,
    refunded = final.status = 'FAILED',
    update_time = %(now)s
FROM unnest(
    %(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(otp_ids)s::uuid[], %(statuses)s::text[],
    %(providers)s::text[], %(provider_message_ids)s::text[], %(failure_reasons)s::text[]
) AS final (organization_id, delivery_id, otp_id, status, provider, provider_message_id, failure_reason)
WHERE deliveries.organization_id = final.organization_id
    AND deliveries.organization_id = ANY(%(organization_ids)s) -- shard
    AND deliveries.delivery_id = final.delivery_id
    AND deliveries.otp_id = final.otp_id AND deliveries.otp_id >= %(first_otp_id)s
    AND deliveries.status = 'QUEUED'
RETURNING deliveries.organization_id, deliveries.delivery_id;

-- postpone_attempts
UPDATE outbox
SET attempts = outbox.attempts + 1,
    next_attempt_time = postponed.next_attempt_time
FROM unnest(
    %(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(lease_expire_times)s::timestamptz[],
    %(next_attempt_times)s::timestamptz[]
) AS postponed (organization_id, delivery_id, lease_expire_time, next_attempt_time)
WHERE outbox.delivery_id = ANY(%(delivery_ids)s::uuid[])
    AND outbox.delivery_id = postponed.delivery_id
    AND outbox.organization_id = postponed.organization_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND (outbox.next_attempt_time = postponed.lease_expire_time) IS TRUE;
