"""A stand-in for Stripe that the real SDK can use: invoices, hosted pages, webhooks, and faults on request.

`control` documents its faults and actions.
"""

from server.sandbox.stripe.sandbox import StripeSandbox, start_stripe_sandbox

__all__ = ["StripeSandbox", "start_stripe_sandbox"]
