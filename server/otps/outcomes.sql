-- remove_from_outbox
DELETE FROM outbox
USING unnest(%(organization_ids)s::text[], %(delivery_ids)s::uuid[]) AS settled (organization_id, delivery_id)
WHERE outbox.organization_id = settled.organization_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND outbox.delivery_id = settled.delivery_id;

-- remove_held
-- Nothing went out in our hands. Where another replica has taken over, moving next_attempt_time, it may in theirs.
DELETE FROM outbox
USING unnest(%(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(held_until)s::timestamptz[])
    AS held (organization_id, delivery_id, held_until)
WHERE outbox.organization_id = held.organization_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND outbox.delivery_id = held.delivery_id
    AND outbox.next_attempt_time = held.held_until
RETURNING outbox.organization_id, outbox.delivery_id;

-- settle
UPDATE deliveries
SET status = settled.status,
    provider = settled.provider,
    provider_message_id = settled.provider_message_id,
    failure_reason = settled.failure_reason,
    refunded = settled.status = 'FAILED',
    update_time = %(now)s
FROM unnest(
    %(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(statuses)s::text[], %(providers)s::text[],
    %(provider_message_ids)s::text[], %(failure_reasons)s::text[]
) AS settled (organization_id, delivery_id, status, provider, provider_message_id, failure_reason)
WHERE deliveries.organization_id = settled.organization_id
    AND deliveries.organization_id = ANY(%(organization_ids)s) -- shard
    AND deliveries.delivery_id = settled.delivery_id
    AND deliveries.status = 'QUEUED'
RETURNING deliveries.organization_id, deliveries.delivery_id;

-- postpone
UPDATE outbox
SET attempts = outbox.attempts + 1,
    next_attempt_time = postponed.next_attempt_time
FROM unnest(
    %(organization_ids)s::text[], %(delivery_ids)s::uuid[], %(held_until)s::timestamptz[],
    %(next_attempt_times)s::timestamptz[]
) AS postponed (organization_id, delivery_id, held_until, next_attempt_time)
WHERE outbox.organization_id = postponed.organization_id
    AND outbox.organization_id = ANY(%(organization_ids)s) -- shard
    AND outbox.delivery_id = postponed.delivery_id
    AND outbox.next_attempt_time = postponed.held_until;
