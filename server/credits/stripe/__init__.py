"""Stripe: the client, the inbox of events, the comparison of invoices. Only this package imports Stripe's SDK."""
