"""A Stripe account on this machine that the real SDK talks to: invoices, hosted pages, webhooks, faults on request.

See `control` for how to make it misbehave.
"""

from server.sandbox.stripe.sandbox import StripeSandbox, start_stripe_sandbox

__all__ = ["StripeSandbox", "start_stripe_sandbox"]
