-- What an invoice shows besides its total, what was taken back for a dispute, and what a person decided.

ALTER TABLE top_ups
    ADD COLUMN tax numeric,
    ADD COLUMN amount_paid numeric NOT NULL DEFAULT 0,
    ADD COLUMN amount_remaining numeric,
    ADD COLUMN is_frozen boolean NOT NULL DEFAULT false,
    ADD COLUMN frozen_credits bigint NOT NULL DEFAULT 0,
    ADD COLUMN resolved_credits bigint NOT NULL DEFAULT 0,
    ADD COLUMN resolved_flags text[] NOT NULL DEFAULT '{}',
    ADD COLUMN resolve_time timestamptz,
    ADD COLUMN resolve_request_id uuid,
    ADD COLUMN resolve_reason text NOT NULL DEFAULT '',
    ADD COLUMN resolved_by text NOT NULL DEFAULT '';

-- Each constraint in a statement of its own, as Citus needs it.
ALTER TABLE top_ups DROP CONSTRAINT status_is_known;
ALTER TABLE top_ups ADD CONSTRAINT status_is_known CHECK (
    status IN (
        'CREATING', 'OPEN', 'PAID', 'CANCELING', 'CANCELED', 'EXPIRED', 'UNCOLLECTIBLE', 'REVIEW', 'FAILED', 'RESOLVED'
    )
);
ALTER TABLE top_ups ADD CONSTRAINT a_resolution_has_its_reason_and_author CHECK (
    (resolve_time IS NOT NULL) = (resolve_request_id IS NOT NULL)
    AND (resolve_time IS NULL OR (resolve_reason <> '' AND resolved_by <> ''))
    AND (status <> 'RESOLVED' OR resolve_time IS NOT NULL)
);
ALTER TABLE top_ups ADD CONSTRAINT resolutions_add_at_most_what_was_ordered CHECK (
    resolved_credits BETWEEN 0 AND credits AND frozen_credits BETWEEN 0 AND credits
    AND (status <> 'PAID' OR resolved_credits = 0)
);
