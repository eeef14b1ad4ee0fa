"""What can go wrong at Stripe, in our own words: rooms decide on these and never see the SDK's.

PaymentsError
├── Unavailable: no usable answer; the call may or may not have been executed
├── KeySpent: the idempotency key can't be used any more; what it did must be looked up
├── NotFound: no such object
└── Refused: definitely not executed, with a stable word that says why
"""

import re
from dataclasses import dataclass

import aiohttp
import stripe

_WORD = re.compile(r"[a-z][a-z0-9_]{0,60}")
_SERVER_ERRORS = 500


class PaymentsError(Exception):
    """A call to Stripe did not do what it was for. Never holds Stripe's text, which may echo what was sent."""


class Unavailable(PaymentsError):
    """No usable answer came: the call may or may not have been executed. Repeat it with the same key."""


class KeySpent(PaymentsError):
    """The key is bound to other parameters or to a stored failure: look up what exists, then use a new key."""


class NotFound(PaymentsError):
    """Stripe has no such object."""


@dataclass
class Refused(PaymentsError):
    """Stripe understood the call and did not execute it."""

    word: str
    """Stripe's error code, such as `amount_too_large`, or `refused` when it gave none."""


def explain(error: Exception) -> PaymentsError:
    """An error of the SDK or its transport, in our words."""
    match error:
        case stripe.IdempotencyError():
            return KeySpent()
        case stripe.InvalidRequestError(code="resource_missing"):
            return NotFound()
        case stripe.InvalidRequestError() | stripe.CardError():
            code = error.code or ""
            return Refused(code if _WORD.fullmatch(code) else "refused")
        case stripe.APIError() if _is_stored(error):
            return KeySpent()
        case _:
            # Also a refused API key: an operator must mend that, and until then nothing is known.
            return Unavailable(type(error).__name__)


TRANSPORT_ERRORS = (stripe.StripeError, aiohttp.ClientError, TimeoutError, OSError)
"""What the SDK's calls raise: its body reader lets aiohttp's own errors through."""


def _is_stored(error: stripe.APIError) -> bool:
    """True for a 5xx that the idempotency key will give again, whatever happens (docs.stripe.com/error-low-level)."""
    replayed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("idempotent-replayed")
    return (error.http_status or 0) >= _SERVER_ERRORS and replayed == "true"
