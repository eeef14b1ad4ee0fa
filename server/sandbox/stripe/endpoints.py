"""The webhook endpoint that exists from the start, and its secrets."""

from server.sandbox.stripe.books import Books, Object
from server.sandbox.stripe.receipts import new_endpoint

DEFAULT_ENDPOINT = "we_default"
DEFAULT_EVENTS = [
    "invoice.paid",
    "invoice.finalized",
    "invoice.finalization_failed",
    "invoice.voided",
    "invoice.marked_uncollectible",
    "invoice.payment_failed",
    "invoice.payment_action_required",
    "invoice.overpaid",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.closed",
    "credit_note.created",
]
"""What the default endpoint subscribes to. Not invoice.payment_succeeded: with invoice.paid it says one thing twice."""


def set_default_endpoint(books: Books, *, url: str | None, secret: str) -> Object:
    """The default endpoint with this secret; without a URL it is disabled and gets nothing."""
    fresh = new_endpoint(books, url="", events=list(DEFAULT_EVENTS)) | {"id": DEFAULT_ENDPOINT}
    books.objects["webhook_endpoint"].setdefault(DEFAULT_ENDPOINT, fresh)
    books.secrets[DEFAULT_ENDPOINT] = [secret]
    return set_default_url(books, url)


def set_default_url(books: Books, url: str | None) -> Object:
    """Where the default endpoint is from now on."""
    endpoint = books.find("webhook_endpoint", DEFAULT_ENDPOINT)
    endpoint.update(url=url or "", status="enabled" if url else "disabled")
    return endpoint


def roll_secret(books: Books, secret: str | None) -> list[str]:
    """A new secret for the default endpoint; the old one signs along until it is expired."""
    books.secrets[DEFAULT_ENDPOINT].insert(0, secret or books.new_id("whsec_"))
    return books.secrets[DEFAULT_ENDPOINT]


def expire_secrets(books: Books) -> list[str]:
    """Only the newest secret of the default endpoint signs."""
    del books.secrets[DEFAULT_ENDPOINT][1:]
    return books.secrets[DEFAULT_ENDPOINT]
