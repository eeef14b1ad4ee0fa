"""Delivery of accepted sends: outbox, dispatcher, outcomes, and providers' delivery reports."""
