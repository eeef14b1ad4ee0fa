"""Idempotency keys, as Stripe keeps them: the first answer under a key is every answer, for a day."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from server.sandbox.stripe.books import Books
from server.sandbox.stripe.refusal import Refusal

_LONGEST_KEY = 255
_KEPT_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Call:
    """One API call as it came in."""

    request_id: str
    method: str
    path: str
    parameters: dict[str, Any]
    """Decoded, values still strings."""
    key: str | None
    """The idempotency key; only what POST sends is one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over HTTP."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class Keys:
    """The keys that are kept (in the books) and those whose call is still running."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._busy: set[str] = set()

    def recall(self, call: Call) -> Answer | None:
        """The answer kept under the call's key, if any; refused when the key was for another call or is in use."""
        if call.key is None:
            return None
        if len(call.key) > _LONGEST_KEY:
            raise Refusal(f"Idempotency keys have up to {_LONGEST_KEY} characters.")
        if call.key in self._busy:
            message = "There is currently another in-progress request using this idempotency key."
            raise Refusal(message, status=HTTPStatus.CONFLICT, kind="idempotency_error", code="idempotency_key_in_use")
        kept = self._books.keys.get(call.key)
        if kept is None or self._books.now() - kept["created"] >= _KEPT_SECONDS:
            return None
        if kept["fingerprint"] != _fingerprint(call):
            message = "Keys for idempotent requests can only be used with the same endpoint and parameters as at first."
            raise Refusal(message, kind="idempotency_error")
        return Answer(kept["status"], kept["body"], kept["headers"] | {"Idempotent-Replayed": "true"})

    def keep(self, call: Call, answer: Answer) -> None:
        """From now on this is the answer under the call's key."""
        if call.key is not None:
            self._books.keys[call.key] = {
                "fingerprint": _fingerprint(call),
                "created": self._books.now(),
                "status": answer.status,
                "body": answer.body,
                "headers": answer.headers,
            }

    def prune(self, *, older_than_seconds: int) -> int:
        """Forget the keys of at least this age; says how many."""
        limit = self._books.now() - older_than_seconds
        old = [key for key, kept in self._books.keys.items() if kept["created"] <= limit]
        for key in old:
            del self._books.keys[key]
        return len(old)

    @contextmanager
    def in_use(self, call: Call) -> Iterator[None]:
        """While inside, the same key elsewhere is a conflict."""
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
