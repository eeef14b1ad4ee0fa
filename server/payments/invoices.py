"""A Stripe invoice in our own words."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from server.payments.amounts import from_minor_units

_THROUGH_STRIPE = {"payment_intent", "charge"}


class InvoiceStatus(StrEnum):
    """Where Stripe says that an invoice stands."""

    DRAFT = "draft"
    OPEN = "open"
    PAID = "paid"
    UNCOLLECTIBLE = "uncollectible"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Invoice:
    """One invoice as Stripe had it when asked. Amounts are money, not minor units."""

    invoice_id: str
    customer_id: str
    status: InvoiceStatus
    livemode: bool
    create_time: datetime
    metadata: Mapping[str, str]
    line_count: int
    currency_code: str
    subtotal: Decimal
    discount: Decimal
    total: Decimal
    """With tax."""
    starting_balance: Decimal
    """The customer's balance that was applied: not 0 means that the invoice is about more than one purchase."""
    amount_due: Decimal
    amount_paid: Decimal
    """Also 0 for an invoice that is paid: one below Stripe's minimum, or settled by a balance or a credit note."""
    paid_through_stripe: Decimal
    """The part of amount_paid that Stripe itself collected, not what a person marked as paid. 0 unless retrieved."""
    amount_overpaid: Decimal
    amount_credited: Decimal
    """By credit notes, before or after payment."""
    number: str
    """Empty until finalized, as are the links, which expire."""
    hosted_invoice_url: str
    invoice_pdf_url: str
    due_time: datetime | None


def read_invoice(fields: Mapping[str, Any]) -> Invoice:
    """An invoice from Stripe's JSON. Raises KeyError, TypeError or ValueError when it is not one."""
    return Invoice(
        invoice_id=fields["id"],
        customer_id=fields["customer"],
        status=InvoiceStatus(fields["status"]),
        livemode=fields["livemode"],
        create_time=_time(fields["created"]),
        metadata=fields["metadata"] or {},
        line_count=len(fields["lines"]["data"]),
        currency_code=fields["currency"].upper(),
        subtotal=from_minor_units(fields["subtotal"]),
        discount=from_minor_units(sum(each["amount"] for each in fields.get("total_discount_amounts") or [])),
        total=from_minor_units(fields["total"]),
        starting_balance=from_minor_units(fields["starting_balance"]),
        amount_due=from_minor_units(fields["amount_due"]),
        amount_paid=from_minor_units(fields["amount_paid"]),
        paid_through_stripe=from_minor_units(_paid_through_stripe(fields)),
        amount_overpaid=from_minor_units(fields.get("amount_overpaid") or 0),
        amount_credited=from_minor_units(
            fields["pre_payment_credit_notes_amount"] + fields["post_payment_credit_notes_amount"]
        ),
        number=fields["number"] or "",
        hosted_invoice_url=fields["hosted_invoice_url"] or "",
        invoice_pdf_url=fields["invoice_pdf"] or "",
        due_time=_time(fields["due_date"]) if fields["due_date"] else None,
    )


def _paid_through_stripe(fields: Mapping[str, Any]) -> int:
    # Only the first page of payments comes along: with more than that the sum is too small, never too large.
    payments = (fields.get("payments") or {}).get("data", [])
    return sum(
        payment["amount_paid"] or 0
        for payment in payments
        if payment["status"] == "paid" and payment["payment"]["type"] in _THROUGH_STRIPE
    )


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
