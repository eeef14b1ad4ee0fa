"""Saved cards: Stripe's page on which a person saves one (Checkout in setup mode), and reading the card from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from server.credits.stripe.invoices import Parameters


@dataclass(frozen=True, slots=True)
class Card:
    """A saved card, of Stripe's type payment method."""

    payment_method_id: str
    brand: str
    last4: str
    expire_month: int
    expire_year: int


@dataclass(frozen=True, slots=True)
class CardSetup:
    """Stripe's page on which a card is saved, a Checkout session."""

    session_id: str
    url: str
    """Empty once the page is completed or has expired."""
    expire_time: datetime
    create_time: datetime
    livemode: bool
    metadata: Mapping[str, str]
    customer_id: str
    card: Card | None
    """None until the page is completed, and once the card is detached."""


def card_setup_parameters(*, environment: str, organization_id: str, return_url: str) -> Parameters:
    """The parameters of the page, without its customer. A card that is saved there may be charged off session."""
    owner = {"organization_id": organization_id, "environment": environment}
    return {
        "mode": "setup",
        "allowed_payment_method_types": ["card"],
        "success_url": return_url,
        "cancel_url": return_url,
        "metadata": owner,
        "setup_intent_data": {"metadata": owner},
    }


def read_card_setup(fields: Mapping[str, Any]) -> CardSetup:
    """Read a session from Stripe's JSON, with its expanded setup_intent.payment_method if it is complete.

    Raises KeyError, TypeError or ValueError for another shape.
    """
    intent = fields["setup_intent"] if fields["status"] == "complete" else None
    method = intent["payment_method"] if isinstance(intent, Mapping) and intent["status"] == "succeeded" else None
    return CardSetup(
        session_id=fields["id"],
        url=fields["url"] or "",
        expire_time=datetime.fromtimestamp(fields["expires_at"], tz=UTC),
        create_time=datetime.fromtimestamp(fields["created"], tz=UTC),
        livemode=fields["livemode"],
        metadata=fields["metadata"] or {},
        customer_id=fields["customer"] or "",
        card=read_card(method) if method else None,
    )


def read_card(fields: Mapping[str, Any]) -> Card | None:
    """Read a payment method from Stripe's JSON; None when no customer has it. Raises as `read_card_setup` does."""
    if not fields["customer"]:
        return None
    card = fields["card"]
    return Card(fields["id"], card["brand"], card["last4"], card["exp_month"], card["exp_year"])
