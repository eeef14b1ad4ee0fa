-- Top-ups (purchases of credits), and the inbox of Stripe's events.
--
-- A top-up is a state machine that a crash may interrupt in any state. The row has everything that is needed to
-- continue, including the parameters of its Stripe calls, so that a repeated call is identical even after an upgrade.
--
-- frozen_credits were taken back for a dispute; resolved_credits and what follows are what a person decided.

CREATE TABLE top_ups (
    organization_id text NOT NULL,
    top_up_id uuid NOT NULL,
    status text NOT NULL,
    end_status text,
    failure_reason text NOT NULL DEFAULT '',
    flags text[] NOT NULL DEFAULT '{}',
    credits bigint NOT NULL,
    currency_code text NOT NULL,
    unit_price numeric NOT NULL,
    total numeric NOT NULL,
    created_by text NOT NULL,
    create_time timestamptz NOT NULL,
    stripe_parameters jsonb NOT NULL,
    attempt integer NOT NULL DEFAULT 1,
    attempt_time timestamptz NOT NULL,
    stripe_customer_id text,
    stripe_invoice_id text,
    invoice_number text NOT NULL DEFAULT '',
    invoice_total numeric,
    tax numeric,
    amount_paid numeric NOT NULL DEFAULT 0,
    amount_remaining numeric,
    hosted_invoice_url text NOT NULL DEFAULT '',
    invoice_pdf_url text NOT NULL DEFAULT '',
    links_fetch_time timestamptz,
    due_time timestamptz,
    paid_time timestamptz,
    cancel_time timestamptz,
    is_frozen boolean NOT NULL DEFAULT false,
    frozen_credits bigint NOT NULL DEFAULT 0,
    resolved_credits bigint NOT NULL DEFAULT 0,
    resolved_flags text[] NOT NULL DEFAULT '{}',
    resolve_time timestamptz,
    resolve_request_id uuid,
    resolve_reason text NOT NULL DEFAULT '',
    resolved_by text NOT NULL DEFAULT '',
    lease_expire_time timestamptz,
    next_check_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, top_up_id),
    CONSTRAINT one_top_up_per_invoice UNIQUE (organization_id, stripe_invoice_id),
    CONSTRAINT status_is_known CHECK (
        status IN (
            'CREATING', 'OPEN', 'PAID', 'CANCELING', 'CANCELED', 'EXPIRED', 'UNCOLLECTIBLE', 'REVIEW', 'FAILED',
            'RESOLVED'
        )
    ),
    CONSTRAINT canceling_knows_how_it_ends CHECK (
        (status = 'CANCELING') = (end_status IS NOT NULL)
        AND (end_status IS NULL OR end_status IN ('CANCELED', 'EXPIRED', 'REVIEW', 'FAILED'))
    ),
    CONSTRAINT a_failure_and_a_review_have_a_reason CHECK (status NOT IN ('FAILED', 'REVIEW') OR failure_reason <> ''),
    CONSTRAINT credits_are_bought_for_money CHECK (credits > 0 AND unit_price > 0 AND total > 0),
    CONSTRAINT what_is_paid_has_an_invoice CHECK (
        status NOT IN ('OPEN', 'PAID', 'UNCOLLECTIBLE') OR stripe_invoice_id IS NOT NULL
    ),
    CONSTRAINT only_a_paid_top_up_has_its_time CHECK ((status = 'PAID') = (paid_time IS NOT NULL)),
    CONSTRAINT only_an_ended_top_up_has_its_time CHECK (
        (status IN ('CANCELED', 'EXPIRED')) = (cancel_time IS NOT NULL)
    ),
    CONSTRAINT a_resolution_has_its_reason_and_author CHECK (
        (resolve_time IS NOT NULL) = (resolve_request_id IS NOT NULL)
        AND (resolve_time IS NULL OR (resolve_reason <> '' AND resolved_by <> ''))
        AND (status <> 'RESOLVED' OR resolve_time IS NOT NULL)
    ),
    CONSTRAINT resolutions_add_at_most_what_was_ordered CHECK (
        resolved_credits BETWEEN 0 AND credits AND frozen_credits BETWEEN 0 AND credits
        AND (status <> 'PAID' OR resolved_credits = 0)
    ),
    CONSTRAINT attempts_begin_at_1 CHECK (attempt >= 1)
);
-- An organization has at most one unfinished top-up.
CREATE UNIQUE INDEX one_unfinished_top_up_per_organization ON top_ups (organization_id)
WHERE status IN ('CREATING', 'OPEN', 'CANCELING');
CREATE INDEX top_ups_to_check ON top_ups (next_check_time)
WHERE status IN ('CREATING', 'OPEN', 'CANCELING', 'UNCOLLECTIBLE');
CREATE INDEX top_ups_by_time ON top_ups (create_time);

-- Stripe's events, once per event id. next_attempt_time is the lease: the worker that moved it into the future
-- processes the event. A REJECTED event has a valid signature and another mode or account: kept for inspection, never
-- processed.
CREATE TABLE stripe_events (
    event_id text NOT NULL,
    type text NOT NULL,
    payload text NOT NULL,
    status text NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (event_id),
    CONSTRAINT status_is_known CHECK (status IN ('RECEIVED', 'DONE', 'REJECTED', 'DEAD')),
    CONSTRAINT attempts_are_counted CHECK (attempts >= 0)
);
CREATE INDEX stripe_events_to_process ON stripe_events (next_attempt_time) WHERE status = 'RECEIVED';
-- For retention.
CREATE INDEX stripe_events_by_time ON stripe_events (create_time) WHERE status IN ('DONE', 'REJECTED');
