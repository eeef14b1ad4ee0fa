"""The errors of a Stripe call. Callers handle these and never the SDK's own.

StripeCallError
├── StripeUnavailable: no usable answer; the call may or may not have been executed
├── IdempotencyKeySpent: the idempotency key is unusable; look up what its calls did
├── StripeNotFound: no such object
└── StripeRefused: definitely not executed; `reason` says why
"""

import re
from dataclasses import dataclass

import aiohttp
import stripe

_ERROR_CODE = re.compile(r"[a-z][a-z0-9_]{0,60}")
_SERVER_ERRORS = 500


class StripeCallError(Exception):
    """A Stripe call failed. Never contains Stripe's message, which may repeat the request's values."""


class StripeUnavailable(StripeCallError):
    """There was no usable answer; the call may or may not have been executed. Repeat it with the same key."""


class IdempotencyKeySpent(StripeCallError):
    """The key belongs to other parameters or to a stored failure. Look up what exists, then use a new key."""


class StripeNotFound(StripeCallError):
    """Stripe has no object with this id."""


@dataclass
class StripeRefused(StripeCallError):
    """Stripe rejected the call without executing it."""

    reason: str
    """Stripe's error code, such as `amount_too_large`; `refused` without a code."""


TRANSPORT_ERRORS = (stripe.StripeError, aiohttp.ClientError, TimeoutError, OSError)
"""What the SDK's calls raise. Its body reader does not translate aiohttp's errors."""


def explain(error: Exception) -> StripeCallError:
    """Translate an error of the SDK or of its transport."""
    match error:
        case stripe.IdempotencyError():
            return IdempotencyKeySpent()
        case stripe.InvalidRequestError(code="resource_missing"):
            return StripeNotFound()
        case stripe.InvalidRequestError() | stripe.CardError():
            code = error.code or ""
            return StripeRefused(code if _ERROR_CODE.fullmatch(code) else "refused")
        case stripe.APIError() if _is_stored(error):
            return IdempotencyKeySpent()
        case _:
            # Also a rejected API key: an operator must replace it, and until then no call has a result.
            return StripeUnavailable(type(error).__name__)


def _is_stored(error: stripe.APIError) -> bool:
    """True for a 5xx that Stripe has stored under the key and will repeat (docs.stripe.com/error-low-level)."""
    replayed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("idempotent-replayed")
    return (error.http_status or 0) >= _SERVER_ERRORS and replayed == "true"
