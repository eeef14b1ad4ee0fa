"""Idempotency keys as at Stripe: the first response under a key is repeated for a day."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from server.sandbox.stripe.account import StripeAccount
from server.sandbox.stripe.errors import ApiError

_LONGEST_KEY = 255
_STORED_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Call:
    """One API call as received."""

    request_id: str
    method: str
    path: str
    parameters: dict[str, Any]
    """Decoded, values still strings."""
    key: str | None
    """The idempotency key; None unless the method is POST."""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class IdempotencyKeys:
    """The stored keys (in the account) and those whose call is still running."""

    def __init__(self, account: StripeAccount) -> None:
        self._account = account
        self._busy: set[str] = set()

    def stored_response(self, call: Call) -> Response | None:
        """The response stored under the call's key, if any; refused when the key is of another call or in use."""
        if call.key is None:
            return None
        if len(call.key) > _LONGEST_KEY:
            raise ApiError(f"Idempotency keys have up to {_LONGEST_KEY} characters.")
        if call.key in self._busy:
            message = "There is currently another in-progress request using this idempotency key."
            raise ApiError(message, status=HTTPStatus.CONFLICT, kind="idempotency_error", code="idempotency_key_in_use")
        stored = self._account.keys.get(call.key)
        if stored is None or self._account.now() - stored["created"] >= _STORED_SECONDS:
            return None
        if stored["fingerprint"] != _fingerprint(call):
            message = "Keys for idempotent requests can only be used with the same endpoint and parameters as at first."
            raise ApiError(message, kind="idempotency_error")
        return Response(stored["status"], stored["body"], stored["headers"] | {"Idempotent-Replayed": "true"})

    def store(self, call: Call, response: Response) -> None:
        """Store the response under the call's key."""
        if call.key is not None:
            self._account.keys[call.key] = {
                "fingerprint": _fingerprint(call),
                "created": self._account.now(),
                "status": response.status,
                "body": response.body,
                "headers": response.headers,
            }

    def prune(self, *, older_than_seconds: int) -> int:
        """Delete the keys of at least this age; returns how many."""
        limit = self._account.now() - older_than_seconds
        old = [key for key, stored in self._account.keys.items() if stored["created"] <= limit]
        for key in old:
            del self._account.keys[key]
        return len(old)

    @contextmanager
    def in_use(self, call: Call) -> Iterator[None]:
        """While the block runs, another call with the same key is a conflict."""
        if call.key is None:
            yield
            return
        self._busy.add(call.key)
        try:
            yield
        finally:
            self._busy.discard(call.key)


def _fingerprint(call: Call) -> str:
    return json.dumps([call.method, call.path, call.parameters], sort_keys=True)
