"""Top-ups: purchases of credits. Each has one Stripe invoice."""
