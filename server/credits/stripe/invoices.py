"""Stripe invoices: amounts in minor units, the frozen parameters of an invoice's calls, reading an invoice, balances.

The parameters of every call for a top-up are computed once, when it is ordered, and stored with it. So a repeated call
has the same parameters as the first, which its idempotency key requires, even after an upgrade.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

_DECIMALS = 2
_WHOLE_UNITS_ONLY = frozenset({"IDR"})
_PAID_THROUGH_STRIPE = frozenset({"payment_intent", "charge"})
MONEY_TYPES = frozenset({"invoice_overpaid", "unspent_receiver_credit"})
"""The types of balance transactions whose credit is money that the customer paid and that bought nothing yet.

Not credit_note: what it returns has bought credits before, which the organization keeps. Not adjustment, initial and
migration, which anybody may have made for any reason (docs.stripe.com/billing/customer/balance#types).
"""

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
class TaxRate:
    """A tax rate that was made at Stripe, as the settings tell it."""

    rate_id: str
    percent: Decimal
    inclusive: bool
    """The price includes the tax; otherwise it is added."""

    def tax_on(self, total: Decimal) -> Decimal:
        """The tax on an order's total or, when it is inclusive, in it; rounded half up to a minor unit."""
        parts = 100 + self.percent if self.inclusive else Decimal(100)
        return (total * self.percent / parts).quantize(Decimal(1).scaleb(-_DECIMALS), ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class AutomaticTax:
    """Stripe computes the tax from the customer's address and tax id."""

    inclusive: bool


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
    billing_address: Mapping[str, str] = field(default_factory=dict)
    """By Stripe's names: country, line1, and so on."""
    tax_id: Mapping[str, str] = field(default_factory=dict)
    """`type` and `value`, or empty."""
    tax: TaxRate | AutomaticTax | None = None
    is_automatic: bool = False
    """Its payment is charged to a saved card."""


def invoice_parameters(order: InvoiceOrder) -> Parameters:
    """The parameters of the calls that create the `customer`, the `invoice` and its `item`, by these names.

    `tax` is what the invoice must have: `inclusive`, with `percent` and `amount`, or `automatic`; empty for none.
    `tax_id` is the customer's, or empty.
    """
    owner = {"organization_id": order.organization_id, "environment": order.environment}
    currency = order.currency_code.lower()
    invoice: Parameters = {
        "currency": currency,
        **({"collection_method": "charge_automatically"} if order.is_automatic else _by_mail(order)),
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        # Enough to restore a top-up that the database has lost.
        "metadata": owner
        | {
            "top_up_id": str(order.top_up_id),
            "request_id": str(order.request_id),
            "credits": str(order.credits),
        }
        | ({"automatic": "true"} if order.is_automatic else {}),
        # Empty: a coupon of the customer is not inherited.
        "discounts": "",
    }
    item = {"currency": currency, "description": f"{order.credits} OTP credits", **_price(order)}
    if order.payment_method_types:
        invoice["payment_settings"] = {"payment_method_types": list(order.payment_method_types)}
    tax: Parameters = {}
    match order.tax:
        case TaxRate(rate_id, percent, inclusive):
            item["tax_rates"] = [rate_id]
            tax = {"percent": str(percent), "inclusive": inclusive, "amount": str(order.tax.tax_on(order.total))}
        case AutomaticTax(inclusive):
            invoice["automatic_tax"] = {"enabled": True}
            item["tax_behavior"] = "inclusive" if inclusive else "exclusive"
            tax = {"automatic": True, "inclusive": inclusive}
    customer = {"email": order.billing_email, "name": order.billing_name or order.organization_id, "metadata": owner}
    if order.billing_address:
        customer["address"] = dict(order.billing_address)
    return {"customer": customer, "invoice": invoice, "item": item, "tax": tax, "tax_id": dict(order.tax_id)}


def _by_mail(order: InvoiceOrder) -> Parameters:
    return {"collection_method": "send_invoice", "days_until_due": order.days_until_due}


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
    tax: Decimal
    has_automatic_tax: bool
    """Stripe computed the tax, which may be 0."""
    starting_balance: Decimal
    """The customer's balance before the invoice took it: negative is credit, positive is added to the amount due."""
    balance_applied: Decimal
    """The credit of the customer that the invoice took."""
    balance_money: Decimal
    """The part of balance_applied that the customer had paid, by the types of the balance's transactions."""
    amount_due: Decimal
    amount_remaining: Decimal
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
    payment_intent_ids: tuple[str, ...] = ()
    """Of its payments; empty unless the answer includes them."""


@dataclass(frozen=True, slots=True)
class BalanceTransaction:
    """One change of a customer's balance. The amount is in units of the currency, and negative for a credit."""

    type: str
    amount: Decimal
    currency_code: str
    invoice_id: str | None


@dataclass(frozen=True, slots=True)
class CustomerBalance:
    """A customer's balance in one currency."""

    credit: Decimal
    """What the next invoice takes; negative: what it adds."""
    is_money: bool
    """The whole credit was paid."""
    money_applied: Mapping[str, Decimal]
    """By invoice id, the paid credit that the invoice took."""


def read_invoice(fields: Mapping[str, Any], *, transactions: Sequence[BalanceTransaction] = ()) -> Invoice:
    """Read an invoice from Stripe's JSON. Raises KeyError, TypeError or ValueError for another shape.

    `transactions` are those of the customer's balance, for an invoice that `uses_balance`.
    """
    currency_code, automatic_tax = fields["currency"].upper(), fields.get("automatic_tax") or {}
    return Invoice(
        invoice_id=fields["id"],
        customer_id=fields["customer"],
        status=InvoiceStatus(fields["status"]),
        livemode=fields["livemode"],
        create_time=_time(fields["created"]),
        metadata=fields["metadata"] or {},
        line_count=len(fields["lines"]["data"]),
        currency_code=currency_code,
        subtotal=from_minor_units(fields["subtotal"]),
        discount=from_minor_units(sum(discount["amount"] for discount in fields.get("total_discount_amounts") or [])),
        total=from_minor_units(fields["total"]),
        tax=from_minor_units(sum(tax["amount"] for tax in fields.get("total_taxes") or [])),
        has_automatic_tax=automatic_tax.get("enabled") is True and automatic_tax.get("status") == "complete",
        starting_balance=from_minor_units(fields["starting_balance"]),
        balance_applied=from_minor_units(_balance_applied(fields)),
        balance_money=replay_balance(transactions, currency_code).money_applied.get(fields["id"], Decimal(0)),
        amount_due=from_minor_units(fields["amount_due"]),
        amount_remaining=from_minor_units(fields["amount_remaining"]),
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
        payment_intent_ids=tuple(
            each["payment"]["payment_intent"]
            for each in _payments(fields)
            if each["payment"]["type"] == "payment_intent"
        ),
    )


def _price(order: InvoiceOrder) -> Parameters:
    """Quantity and unit price if their product is exactly the total, else the total as one amount."""
    amount = to_minor_units(order.total, order.currency_code)
    unit_amount = order.unit_price.scaleb(2)
    if unit_amount * order.credits == amount:
        return {"quantity": order.credits, "unit_amount_decimal": f"{unit_amount.normalize():f}"}
    return {"amount": amount}


def _payments(fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return (fields.get("payments") or {}).get("data") or ()


def _paid_through_stripe(fields: Mapping[str, Any]) -> int:
    return sum(
        payment["amount_paid"] or 0
        for payment in _payments(fields)
        if payment["status"] == "paid" and payment["payment"]["type"] in _PAID_THROUGH_STRIPE
    )


def uses_balance(fields: Mapping[str, Any]) -> bool:
    """Whether an invoice took credit from the customer's balance."""
    return _balance_applied(fields) > 0


def _balance_applied(fields: Mapping[str, Any]) -> int:
    # An invoice below the minimum charge adds what is left to the balance: that is no credit that it took.
    return min(fields["ending_balance"], 0) - fields["starting_balance"] if fields["ending_balance"] is not None else 0


def read_balance_transaction(fields: Mapping[str, Any]) -> BalanceTransaction:
    """Read a transaction from Stripe's JSON. Raises KeyError, TypeError or ValueError for another shape."""
    amount = from_minor_units(fields["amount"])
    return BalanceTransaction(fields["type"], amount, fields["currency"].upper(), fields["invoice"])


def replay_balance(transactions: Iterable[BalanceTransaction], currency_code: str) -> CustomerBalance:
    """Add up the transactions, oldest first.

    When credit that was paid and other credit are mixed, the paid is taken to be spent first, and an invoice that takes
    of a mixed balance is taken to be paid by none of it: so no credit that was given buys anything.
    """
    credit = given = Decimal(0)  # `given` is the part of the credit that is not known to be money
    money_applied: dict[str, Decimal] = {}
    for each in transactions:
        if each.currency_code != currency_code:
            continue
        credit -= each.amount
        invoice_id = each.invoice_id or ""
        if each.type == "applied_to_invoice" and each.amount > 0:
            money_applied[invoice_id] = Decimal(0) if given else each.amount
        elif each.type == "unapplied_from_invoice" and each.amount < 0:
            given -= each.amount + money_applied.pop(invoice_id, Decimal(0))
        elif each.amount < 0 and each.type not in MONEY_TYPES:
            given -= each.amount
        given = max(Decimal(0), min(given, credit))
    return CustomerBalance(credit, given == 0, money_applied)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
