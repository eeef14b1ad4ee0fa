"""The side door: a small HTTP sidecar that relays Stripe's webhooks to the front door."""
