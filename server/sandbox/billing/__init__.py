"""A sample to copy: the billing pages of a platform, as a small server in front of Pulsa (a BFF).

It knows Pulsa only through the public Python client. `app` answers the browser and guards what a BFF must guard,
`live` watches balances for the open pages, `pages` writes HTML and `texts` has its words in English and Indonesian.
docs/api.md explains it.
"""

from server.sandbox.billing.app import Person, serve_billing

__all__ = ["Person", "serve_billing"]
