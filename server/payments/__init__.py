"""The window to Stripe: the only importer of its SDK."""
