"""The state of one Stripe account: plain JSON objects by id, which `save` writes unchanged. Knows no HTTP."""

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from server.sandbox.stripe.errors import not_found

API_VERSION = "2026-10-28.endive"
"""The API version of the objects: the one that the installed SDK pins (a test compares them)."""

Object = dict[str, Any]
"""A Stripe object as JSON."""

KINDS = (
    "customer", "customer_balance_transaction", "tax_id", "tax_rate", "invoice", "invoiceitem", "invoice_payment",
    "charge", "refund", "dispute", "credit_note", "event", "webhook_endpoint", "checkout.session", "setup_intent",
    "payment_method",
)  # fmt: skip
"""The `object` field of each kind that is stored."""

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 20


def default_settings() -> Object:
    """The settings after a reset."""
    return {
        "account": "acct_sandbox",
        "livemode": False,
        "minimum_charges": {"usd": 50, "idr": 800_000},
        "tax_percent": "0",
        "automatic_tax": {"ID": "11"},
        "retry_delay_seconds": 0.2,
        "retry_limit": 20,
        "delivery_timeout_seconds": 10.0,
    }


@dataclass(slots=True)
class StripeAccount:
    """One account's objects, settings, idempotency keys and undelivered events.

    `on_event` is called with each event once it is recorded.
    """

    seed: str
    """Makes ids unique between stand-ins; a fixed seed makes them repeatable."""
    url: str = ""
    """Base address of the hosted pages."""
    counter: int = 0
    clock_ahead_seconds: int = 0
    settings: Object = field(default_factory=default_settings)
    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    private: dict[str, Object] = field(default_factory=dict)
    """By id of an invoice, coupon or card, what the API does not show: a pending payment, the page's token, a
    percentage, how a charge ends."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Invoice id by the token of its hosted page."""
    secrets: dict[str, list[str]] = field(default_factory=dict)
    """By webhook endpoint, newest first; two while one is being rolled."""
    undelivered: dict[str, list[str]] = field(default_factory=dict)
    """By event id, the endpoints that have not yet answered 2xx."""
    keys: dict[str, Object] = field(default_factory=dict)
    """Idempotency keys with the stored responses."""
    request: Object = field(default_factory=lambda: {"id": None, "idempotency_key": None})
    """The API call being executed; its events name it."""
    on_event: Callable[[Object], None] = lambda _event: None

    def now(self) -> int:
        """Unix time plus `clock_ahead_seconds`."""
        return int(time.time()) + self.clock_ahead_seconds

    def new_id(self, prefix: str) -> str:
        """`prefix` and 20 letters or digits, unique in this account."""
        self.counter += 1
        number = int.from_bytes(hashlib.sha256(f"{self.seed}:{self.counter}".encode()).digest())
        letters = []
        for _ in range(_ID_LENGTH):
            number, digit = divmod(number, len(_ALPHABET))
            letters.append(_ALPHABET[digit])
        return prefix + "".join(letters)

    def add(self, resource: Object) -> Object:
        """Store a new object under its own id."""
        self.objects[resource["object"]][resource["id"]] = resource
        return resource

    def find(self, kind: str, identifier: str, *, param: str = "id") -> Object:
        """The object itself, for reading and changing; refused with 404 when there is none."""
        resource = self.objects[kind].get(identifier)
        if resource is None or resource.get("deleted"):
            raise not_found(kind, identifier, param=param)
        return resource

    def emit(self, kind: str, resource: Object, *, previous: Object | None = None) -> Object:
        """Record an event with a snapshot of the object, for every enabled endpoint that subscribes to its type."""
        data: Object = {"object": copy.deepcopy(resource)}
        if previous is not None:
            data["previous_attributes"] = previous
        event = self.add(
            {
                "id": self.new_id("evt_"),
                "object": "event",
                "api_version": API_VERSION,
                "created": self.now(),
                "data": data,
                "livemode": resource.get("livemode", False),
                "pending_webhooks": 0,
                "request": dict(self.request),
                "type": kind,
            }
        )
        self.expect_delivery(event)
        self.on_event(event)
        return event

    def expect_delivery(self, event: Object) -> None:
        """Record the endpoints to which this event must be delivered."""
        waiting = [
            endpoint["id"]
            for endpoint in self.objects["webhook_endpoint"].values()
            if endpoint["status"] == "enabled" and {"*", event["type"]} & set(endpoint["enabled_events"])
        ]
        event["pending_webhooks"] = len(waiting)
        if waiting:
            self.undelivered[event["id"]] = waiting

    def mark_delivered(self, event: Object, endpoint_id: str) -> None:
        """Record that the endpoint accepted the event."""
        waiting = self.undelivered.get(event["id"], [])
        if endpoint_id in waiting:
            waiting.remove(endpoint_id)
            event["pending_webhooks"] = len(waiting)
        if not waiting:
            self.undelivered.pop(event["id"], None)

    def save(self, path: Path) -> None:
        """Replace the file atomically: a reader sees the old content or the new, never a part."""
        content = {name: getattr(self, name) for name in _saved_names()}
        draft = path.with_name(path.name + ".new")
        draft.write_text(json.dumps(content))
        draft.replace(path)

    def load(self, path: Path | None) -> None:
        """Restore a saved file, if there is one; the hosted links then point at the current `url`."""
        if path is None or not path.exists():
            return
        for name, value in json.loads(path.read_text()).items():
            setattr(self, name, value)
        for kind in KINDS:  # a file of an earlier version lacks the later ones
            self.objects.setdefault(kind, {})
        for token, invoice_id in self.tokens.items():
            if self.private[invoice_id]["token"] == token:
                self.set_links(self.objects["invoice"][invoice_id], token)

    def set_links(self, invoice: Object, token: str) -> None:
        """Set the addresses of the invoice's hosted page and PDF."""
        invoice["hosted_invoice_url"] = f"{self.url}/i/{token}"
        invoice["invoice_pdf"] = f"{self.url}/i/{token}/pdf"

    def reset(self) -> None:
        """Delete everything except the webhook endpoints; ids stay unique."""
        for name in ("private", "tokens", "undelivered", "keys"):
            getattr(self, name).clear()
        for kind in set(KINDS) - {"webhook_endpoint"}:
            self.objects[kind].clear()
        self.settings = default_settings()
        self.clock_ahead_seconds = 0


def new_seed() -> str:
    """A random seed."""
    return os.urandom(16).hex()


def _saved_names() -> list[str]:
    return [entry.name for entry in fields(StripeAccount) if entry.name not in {"url", "request", "on_event"}]
