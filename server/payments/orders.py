"""The parameters of the Stripe calls that make one invoice, fixed before the first of them.

They are stored with the top-up and used as stored, so that a repeated call is the same call to Stripe's idempotency
keys, even when an upgrade or a setting would build others in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from server.payments.amounts import to_minor_units

Parameters = dict[str, Any]
"""As JSON; opaque outside this package."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is bought, by whom, on which terms."""

    environment: str
    organization_id: str
    top_up_id: UUID
    credits: int
    currency_code: str
    unit_price: Decimal
    total: Decimal
    billing_email: str
    billing_name: str
    days_until_due: int
    payment_method_types: Sequence[str] = ()
    """Empty: the Stripe account's invoice template decides."""


def freeze(order: Order) -> Parameters:
    """The parameters for the customer, the invoice and its item."""
    owner = {"organization_id": order.organization_id, "environment": order.environment}
    currency = order.currency_code.lower()
    invoice: Parameters = {
        "currency": currency,
        "collection_method": "send_invoice",
        "days_until_due": order.days_until_due,
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "metadata": owner | {"top_up_id": str(order.top_up_id)},
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


def _price(order: Order) -> Parameters:
    """Quantity and unit price where they multiply to exactly what is charged, else the charge as one sum."""
    amount = to_minor_units(order.total, order.currency_code)
    unit_amount = order.unit_price.scaleb(2)
    if unit_amount * order.credits == amount:
        return {"quantity": order.credits, "unit_amount_decimal": f"{unit_amount.normalize():f}"}
    return {"amount": amount}
