"""Stand-ins for Stripe, the message providers and an SMTP relay, for a machine without accounts.

Only `dev`, `demo` and the tests import this package.
"""
