"""Stripe's webhooks: the event types that the endpoint subscribes to, and verifying and parsing a webhook's bytes."""

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
    "refund.created",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.closed",
    "credit_note.created",
    "checkout.session.completed",
    "payment_method.automatically_updated",
    "payment_method.detached",
    "payment_method.updated",
)
"""The types that the webhook endpoint subscribes to. invoice.payment_succeeded would duplicate invoice.paid.

refund.created tells also of a refund without a charge. A part that was paid is found when the invoice is polled. The
last four tell of saved cards; a completed session has its card, so that no event of a setup intent is needed.
"""

DISPUTED = frozenset({"needs_response", "under_review", "lost", "appeal_needs_response", "appeal_under_review"})
"""The statuses of a dispute whose money was withdrawn. Those of an inquiry begin with `warning_`: its money stays."""

MAXIMUM_PAYLOAD_BYTES = 262_144
TOLERANCE_SECONDS = 300
_MAXIMUM_SIGNATURE_LENGTH = 4096
_ID = re.compile(r"[A-Za-z0-9_]{1,255}")
_TYPE = re.compile(r"[a-z0-9_.]{1,100}")


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """One event. It only names the invoice, payment or card: the object's state is always retrieved from Stripe."""

    event_id: str
    type: str
    object: str
    """`event`; events with another value are not processed."""
    livemode: bool
    account_id: str | None
    """Set when the event comes from a connected account (Stripe Connect)."""
    create_time: datetime
    invoice_id: str | None
    payment_intent_id: str | None
    session_id: str | None
    """Of a Checkout session that the event is about."""
    payment_method_id: str | None
    """Of a payment method that the event is about."""
    payload: str
    """The whole event as JSON."""


def verify(payload: bytes, signature: str, *, secrets: Sequence[str], now: datetime) -> StripeEvent:
    """Verify the signature of a webhook's bytes and parse its event.

    One of the secrets must have signed the bytes, at a time within 300 s before or after now. Raises StripeEventInvalid
    for any other input.
    """
    is_short = len(payload) <= MAXIMUM_PAYLOAD_BYTES and len(signature) <= _MAXIMUM_SIGNATURE_LENGTH
    if not is_short or not any(_is_signed(payload, signature, secret=secret, now=now) for secret in secrets):
        raise StripeEventInvalid
    try:
        return parse_event(payload.decode())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError):
        raise StripeEventInvalid from None


def parse_event(payload: str) -> StripeEvent:
    """Parse a verified event. Raises Python's own errors, such as KeyError, for a text of an unexpected shape."""
    return _event(json.loads(payload, object_pairs_hook=_reject_duplicates), payload)


def read_event(fields: Mapping[str, Any]) -> StripeEvent:
    """Read an event from an answer of Stripe's API."""
    # default=str, because the SDK parses decimal amounts as Decimal.
    return _event(fields, json.dumps(fields, default=str, separators=(",", ":")))


def _is_signed(payload: bytes, signature: str, *, secret: str, now: datetime) -> bool:
    try:
        WebhookSignature.verify_header(payload, signature, secret)
        timestamp = next(int(item[2:]) for item in signature.split(",") if item.startswith("t="))
    except Exception:  # noqa: BLE001 - the bytes are unauthenticated, and the SDK raises almost any error for them
        return False
    # Checked here because the SDK accepts a time in the future, until which a stolen signature could be kept.
    return abs(now.timestamp() - timestamp) <= TOLERANCE_SECONDS


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Raises ValueError for a repeated name, because parsers disagree about which value counts."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a JSON object repeats a name")
    return fields


def _event(fields: Mapping[str, Any], payload: str) -> StripeEvent:
    data_object = fields["data"]["object"]
    kind = data_object.get("object")
    return StripeEvent(
        event_id=_matching(_ID, fields["id"]),
        type=_matching(_TYPE, fields["type"]),
        object=str(fields["object"]),
        livemode=fields["livemode"] is True,
        account_id=_matching(_ID, account) if (account := fields.get("account")) is not None else None,
        create_time=datetime.fromtimestamp(int(fields["created"]), tz=UTC),
        # An event about an invoice that does not exist yet, such as invoice.upcoming, has no id.
        invoice_id=_id(data_object.get("id" if kind == "invoice" else "invoice")),
        payment_intent_id=_id(data_object.get("payment_intent")),
        session_id=_id(data_object.get("id")) if kind == "checkout.session" else None,
        payment_method_id=_id(data_object.get("id")) if kind == "payment_method" else None,
        payload=payload,
    )


def _matching(pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise ValueError("not an id or an event type of Stripe")
    return value


def _id(value: object) -> str | None:
    """The id in a field that contains an id or, when expanded, the object itself."""
    value = value.get("id") if isinstance(value, dict) else value
    return value if isinstance(value, str) and _ID.fullmatch(value) else None
