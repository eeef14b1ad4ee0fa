-- Automatic top-ups: what an organization has chosen, its card, and the state, in one row; and every consent.
--
-- A send reads nothing of this. The top-up that a row orders is one like any other: is_automatic marks it, and charge_time
-- is when its invoice is charged next, NULL when it is not.
--
-- methods_to_detach are cards that were removed or replaced here and are still to be removed at Stripe.

CREATE TABLE automatic_top_ups (
    organization_id text NOT NULL,
    is_enabled boolean NOT NULL DEFAULT false,
    threshold_credits bigint NOT NULL DEFAULT 0,
    credits bigint NOT NULL DEFAULT 0,
    currency_code text NOT NULL DEFAULT '',
    monthly_credit_cap bigint NOT NULL DEFAULT 0,
    billing_email text NOT NULL DEFAULT '',
    billing_name text NOT NULL DEFAULT '',
    billing_address jsonb NOT NULL DEFAULT '{}',
    tax_id jsonb NOT NULL DEFAULT '{}',
    payment_method_id text,
    card_brand text NOT NULL DEFAULT '',
    card_last4 text NOT NULL DEFAULT '',
    card_expire_month integer NOT NULL DEFAULT 0,
    card_expire_year integer NOT NULL DEFAULT 0,
    card_save_time timestamptz,
    setup_session_id text NOT NULL DEFAULT '',
    setup_time timestamptz,
    methods_to_detach text[] NOT NULL DEFAULT '{}',
    consent_text text NOT NULL DEFAULT '',
    consent_given_by text NOT NULL DEFAULT '',
    consent_time timestamptz,
    top_up_id uuid,
    failed_charges integer NOT NULL DEFAULT 0,
    last_failure text NOT NULL DEFAULT '',
    cap_reached boolean NOT NULL DEFAULT false,
    next_attempt_time timestamptz NOT NULL,
    off_reason text NOT NULL DEFAULT '',
    change_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id),
    CONSTRAINT what_is_enabled_has_a_card_and_a_consent CHECK (
        NOT is_enabled OR (payment_method_id IS NOT NULL AND consent_time IS NOT NULL)
    ),
    CONSTRAINT what_is_enabled_is_complete CHECK (
        NOT is_enabled OR (
            threshold_credits BETWEEN 1 AND credits AND monthly_credit_cap >= credits AND currency_code <> ''
            AND billing_email <> '' AND off_reason = ''
        )
    ),
    CONSTRAINT a_consent_has_its_text_and_author CHECK (
        (consent_time IS NULL) = (consent_text = '') AND (consent_time IS NULL) = (consent_given_by = '')
    )
);
CREATE INDEX automatic_top_ups_to_order ON automatic_top_ups (next_attempt_time) WHERE is_enabled;
CREATE INDEX automatic_top_ups_to_detach ON automatic_top_ups (organization_id) WHERE methods_to_detach <> '{}';
-- For the processes, which look for changes every second.
CREATE INDEX automatic_top_ups_by_change ON automatic_top_ups (change_time);
-- For a card that was removed at Stripe.
CREATE INDEX automatic_top_ups_by_card ON automatic_top_ups (payment_method_id) WHERE payment_method_id IS NOT NULL;

-- What was agreed to: the text, by whom and when, and the settings that it is about. Never updated or removed.
CREATE TABLE consents (
    organization_id text NOT NULL,
    consent_id uuid NOT NULL,
    consent_text text NOT NULL,
    given_by text NOT NULL,
    terms jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (organization_id, consent_id),
    CONSTRAINT a_consent_has_its_text_and_author CHECK (consent_text <> '' AND given_by <> '')
);

ALTER TABLE top_ups ADD COLUMN is_automatic boolean NOT NULL DEFAULT false;
ALTER TABLE top_ups ADD COLUMN charge_time timestamptz;

-- NOT VALID: the stored rows kept the narrower rules.
ALTER DOMAIN spending_rpc DROP CONSTRAINT rpc_is_known;
ALTER DOMAIN spending_rpc
ADD CONSTRAINT rpc_is_known CHECK (
    VALUE IN ('SendOtp', 'ResendOtp', 'CreateTopUp', 'AdjustCredits', 'StartCardSetup')
) NOT VALID;

ALTER TABLE notices DROP CONSTRAINT kind_is_known;
ALTER TABLE notices
ADD CONSTRAINT kind_is_known CHECK (
    kind IN (
        'PAYMENT_CONFIRMED', 'BALANCE_LOW', 'SPENDING_CAP_REACHED', 'AUTOMATIC_TOP_UP_DECLINED', 'AUTOMATIC_TOP_UP_OFF',
        'AUTOMATIC_TOP_UP_CAP_REACHED'
    )
) NOT VALID;
