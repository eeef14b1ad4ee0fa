"""Credits: accounts, the ledger and its audit, prices, top-ups through Stripe, and notices to the billing contact."""
