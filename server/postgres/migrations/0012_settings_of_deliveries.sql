-- The version of its organization's settings that a delivery was sent with: retries, fallbacks and refunds are by it.
--
-- A file of its own, as it locks each partition of deliveries for a moment.
ALTER TABLE deliveries ADD COLUMN settings_version bigint NOT NULL DEFAULT 0;

-- The sends of a test organization cost nothing. NOT VALID: the stored rows kept the narrower rule.
ALTER DOMAIN delivery_credits DROP CONSTRAINT a_delivery_costs_something;
ALTER DOMAIN delivery_credits
ADD CONSTRAINT a_delivery_never_costs_less_than_nothing CHECK (VALUE >= 0) NOT VALID;
