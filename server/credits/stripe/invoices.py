"""Stripe invoices: amounts in minor units, the frozen parameters of an invoice's calls, and reading an invoice.

The parameters of every call for a top-up are computed once, when it is ordered, and stored with it. So a repeated call
has the same parameters as the first, which its idempotency key requires, even after an upgrade.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

_DECIMALS = 2
_WHOLE_UNITS_ONLY = frozenset({"IDR"})
_PAID_THROUGH_STRIPE = frozenset({"payment_intent", "charge"})

Parameters = dict[str, Any]
"""The parameters of a Stripe call, as JSON."""


def to_minor_units(amount: Decimal, currency_code: str) -> int:
    """The amount in Stripe's minor units, rounded half up to what can be charged.

    Rp150,000 is 15000000; rupiah are always whole.
    """
    charge_unit = Decimal(1) if currency_code in _WHOLE_UNITS_ONLY else Decimal(1).scaleb(-_DECIMALS)
    return int((amount / charge_unit).quantize(Decimal(1), ROUND_HALF_UP) * charge_unit.scaleb(_DECIMALS))


def from_minor_units(minor_units: int) -> Decimal:
    """The exact amount of a number of minor units."""
    return Decimal(minor_units).scaleb(-_DECIMALS)


@dataclass(frozen=True, slots=True)
class InvoiceOrder:
    """The contents of an invoice: the credits, the price, the buyer and the payment terms."""

    environment: str
    organization_id: str
    top_up_id: UUID
    request_id: UUID
    """The request that ordered it."""
    credits: int
    currency_code: str
    unit_price: Decimal
    total: Decimal
    billing_email: str
    billing_name: str
    days_until_due: int
    payment_method_types: Sequence[str] = ()
    """Empty: the Stripe account's invoice template decides which methods are offered."""


def invoice_parameters(order: InvoiceOrder) -> Parameters:
    """The parameters of the calls that create the `customer`, the `invoice` and its `item`, by these names."""
    owner = {"organization_id": order.organization_id, "environment": order.environment}
    currency = order.currency_code.lower()
    invoice: Parameters = {
        "currency": currency,
        "collection_method": "send_invoice",
        "days_until_due": order.days_until_due,
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        # Enough to restore a top-up that the database has lost.
        "metadata": owner
        | {
            "top_up_id": str(order.top_up_id),
            "request_id": str(order.request_id),
            "credits": str(order.credits),
        },
    }
    if order.payment_method_types:
        invoice["payment_settings"] = {"payment_method_types": list(order.payment_method_types)}
    return {
        "customer": {
            "email": order.billing_email,
            "name": order.billing_name or order.organization_id,
            "metadata": owner,
        },
        "invoice": invoice,
        "item": {"currency": currency, "description": f"{order.credits} OTP credits", **_price(order)},
    }


class InvoiceStatus(StrEnum):
    """The status of an invoice at Stripe."""

    DRAFT = "draft"
    OPEN = "open"
    PAID = "paid"
    UNCOLLECTIBLE = "uncollectible"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice as Stripe returned it. Amounts are in units of the currency, not minor units."""

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
    """Including tax."""
    starting_balance: Decimal
    """The customer balance that was applied; other than 0, the invoice includes more than this purchase."""
    amount_due: Decimal
    amount_paid: Decimal
    """0 also for a PAID invoice below Stripe's minimum charge, or paid by a customer balance or a credit note."""
    paid_through_stripe: Decimal
    """The part of amount_paid that Stripe collected, without what a person marked as paid.

    0 unless the answer includes the payments.
    """
    amount_overpaid: Decimal
    amount_credited: Decimal
    """The sum of credit notes, before and after payment."""
    number: str
    """Empty until the invoice is finalized, as are the two URLs, which expire."""
    hosted_invoice_url: str
    invoice_pdf_url: str
    due_time: datetime | None


def read_invoice(fields: Mapping[str, Any]) -> Invoice:
    """Read an invoice from Stripe's JSON. Raises KeyError, TypeError or ValueError for another shape."""
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
        discount=from_minor_units(sum(discount["amount"] for discount in fields.get("total_discount_amounts") or [])),
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


def _price(order: InvoiceOrder) -> Parameters:
    """Quantity and unit price if their product is exactly the total, else the total as one amount."""
    amount = to_minor_units(order.total, order.currency_code)
    unit_amount = order.unit_price.scaleb(2)
    if unit_amount * order.credits == amount:
        return {"quantity": order.credits, "unit_amount_decimal": f"{unit_amount.normalize():f}"}
    return {"amount": amount}


def _paid_through_stripe(fields: Mapping[str, Any]) -> int:
    # Stripe includes only the first page of payments: with more of them the sum is too small, never too large.
    payments = (fields.get("payments") or {}).get("data", [])
    return sum(
        payment["amount_paid"] or 0
        for payment in payments
        if payment["status"] == "paid" and payment["payment"]["type"] in _PAID_THROUGH_STRIPE
    )


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
