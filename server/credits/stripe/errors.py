"""The errors of a Stripe call. Callers handle these and never the SDK's own.

StripeCallError
├── StripeUnavailable: no usable answer; the call may or may not have been executed
├── IdempotencyKeySpent: the idempotency key is unusable; look up what its calls did
├── StripeNotFound: no such object
└── StripeRefused: definitely not executed
"""

import re

import aiohttp
import stripe

_ERROR_CODE = re.compile(r"[a-z][a-z0-9_]{0,60}")
_RIGHT = re.compile(r"\brak_[a-z_]{1,60}")
_SERVER_ERRORS = 500


class StripeCallError(Exception):
    """A Stripe call failed. Never contains Stripe's message, which may repeat the request's values."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """A stable word, such as `no_answer`, or Stripe's error code, such as `amount_too_large`."""


class StripeUnavailable(StripeCallError):
    """There was no usable answer; the call may or may not have been executed. Repeat it with the same key.

    Also for a key that Stripe rejects or that lacks a right: an operator must mend it, and until then no call has a
    result. The reasons are no_answer, server_error, rate_limited, unexpected_answer, api_key_rejected,
    permission_missing (with Stripe's name of the right, when it tells), and not_in_this_account.
    """


class IdempotencyKeySpent(StripeCallError):
    """The key belongs to other parameters or to a stored failure. Look up what exists, then use a new key."""


class StripeNotFound(StripeCallError):
    """Stripe has no object with this id."""


class StripeRefused(StripeCallError):
    """Stripe rejected the call without executing it; the reason is `refused` when Stripe gives no error code."""


TRANSPORT_ERRORS = (stripe.StripeError, aiohttp.ClientError, TimeoutError, OSError)
"""What the SDK's calls raise. Its body reader does not translate aiohttp's errors."""


def explain(error: Exception) -> StripeCallError:
    """Translate an error of the SDK or of its transport."""
    match error:
        case stripe.IdempotencyError():
            return IdempotencyKeySpent("idempotency_key_spent")
        case stripe.InvalidRequestError(code="resource_missing"):
            return StripeNotFound("resource_missing")
        case stripe.InvalidRequestError() | stripe.CardError():
            code = error.code or ""
            return StripeRefused(code if _ERROR_CODE.fullmatch(code) else "refused")
        case stripe.APIError() if _is_stored(error):
            return IdempotencyKeySpent("stored_failure")
        case _:
            return StripeUnavailable(_why_unavailable(error))


def _why_unavailable(error: Exception) -> str:
    match error:
        case stripe.AuthenticationError():
            return "api_key_rejected"
        case stripe.PermissionError():
            right = _RIGHT.search(str(error))
            return f"permission_missing {right[0]}" if right else "permission_missing"
        case stripe.RateLimitError():
            return "rate_limited"
        case stripe.APIError():
            return "server_error" if (error.http_status or 0) >= _SERVER_ERRORS else "unexpected_answer"
        case _:
            return "no_answer"


def _is_stored(error: stripe.APIError) -> bool:
    """True for a 5xx that Stripe has stored under the key and will repeat (docs.stripe.com/error-low-level)."""
    replayed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("idempotent-replayed")
    return (error.http_status or 0) >= _SERVER_ERRORS and replayed == "true"
