"""Stripe's webhooks: what we subscribe to, and how raw bytes become an event that Stripe is known to have sent."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stripe import WebhookSignature

from server.errors import StripeEventInvalid

EVENT_TYPES = (
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
)
"""What the webhook endpoint subscribes to: exactly these. invoice.payment_succeeded says what invoice.paid says."""

MAXIMUM_PAYLOAD_BYTES = 262_144
TOLERANCE_SECONDS = 300
_MAXIMUM_SIGNATURE_LENGTH = 4096
_ID = re.compile(r"[A-Za-z0-9_]{1,255}")
_TYPE = re.compile(r"[a-z0-9_.]{1,100}")


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """One event. What it says of an object is a hint of where to look, never the truth: that is asked of Stripe."""

    event_id: str
    type: str
    object: str
    """`event`; anything else is not for us."""
    livemode: bool
    account_id: str | None
    """Set when the event is of another account that is connected to ours."""
    create_time: datetime
    invoice_id: str | None
    payment_intent_id: str | None
    payload: str
    """All of it, as JSON."""


def verify(payload: bytes, signature: str, *, secrets: Sequence[str], now: datetime) -> StripeEvent:
    """The event in these bytes, signed under one of the secrets within 300 s of now, before or after.

    Raises StripeEventInvalid for anything else, whatever it is.
    """
    short = len(payload) <= MAXIMUM_PAYLOAD_BYTES and len(signature) <= _MAXIMUM_SIGNATURE_LENGTH
    if not short or not any(_is_signed(payload, signature, secret=secret, now=now) for secret in secrets):
        raise StripeEventInvalid
    try:
        return parse_event(payload.decode())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError):
        raise StripeEventInvalid from None


def parse_event(payload: str) -> StripeEvent:
    """The event in a text that was verified. Raises what Python does for a text of another shape."""
    return _event(json.loads(payload, object_pairs_hook=_once), payload)


def read_event(fields: Mapping[str, Any]) -> StripeEvent:
    """The event in an answer of Stripe's API."""
    # The SDK reads decimal amounts as Decimal.
    return _event(fields, json.dumps(fields, default=str, separators=(",", ":")))


def _is_signed(payload: bytes, signature: str, *, secret: str, now: datetime) -> bool:
    try:
        WebhookSignature.verify_header(payload, signature, secret)
        timestamp = next(int(item[2:]) for item in signature.split(",") if item.startswith("t="))
    except Exception:  # noqa: BLE001 - strangers choose these bytes, and the SDK raises almost anything for them
        return False
    # Checked here because the SDK accepts a time in the future, for which a stolen signature could be kept.
    return abs(now.timestamp() - timestamp) <= TOLERANCE_SECONDS


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; refused when a name comes twice, because readers then disagree about what it says."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name comes twice")
    return fields


def _event(fields: Mapping[str, Any], payload: str) -> StripeEvent:
    thing = fields["data"]["object"]
    kind = thing.get("object")
    return StripeEvent(
        event_id=_matching(_ID, fields["id"]),
        type=_matching(_TYPE, fields["type"]),
        object=str(fields["object"]),
        livemode=fields["livemode"] is True,
        account_id=_matching(_ID, account) if (account := fields.get("account")) is not None else None,
        create_time=datetime.fromtimestamp(int(fields["created"]), tz=UTC),
        invoice_id=_id(thing["id"] if kind == "invoice" else thing.get("invoice")),
        payment_intent_id=_id(thing.get("payment_intent")),
        payload=payload,
    )


def _matching(pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise ValueError("not an id or a type of Stripe's")
    return value


def _id(value: object) -> str | None:
    """The id in a field that holds an id or, expanded, the object."""
    value = value.get("id") if isinstance(value, dict) else value
    return value if isinstance(value, str) and _ID.fullmatch(value) else None
