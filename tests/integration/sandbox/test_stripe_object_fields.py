"""The stand-in's objects and parameters have exactly the names that the installed SDK declares."""

import typing
from operator import attrgetter
from typing import Any

import pytest
import stripe

from server.sandbox.stripe.account import API_VERSION, KINDS
from server.sandbox.stripe.operations import OPERATIONS, Operation
from tests.integration.sandbox.stripe_harness import StripeHarness

CLASSES: dict[str, type[stripe.StripeObject]] = {
    "account": stripe.Account,
    "charge": stripe.Charge,
    "credit_note": stripe.CreditNote,
    "cash_balance": stripe.CashBalance,
    "checkout.session": stripe.checkout.Session,
    "customer": stripe.Customer,
    "customer_balance_transaction": stripe.CustomerBalanceTransaction,
    "discount": stripe.Discount,
    "dispute": stripe.Dispute,
    "event": stripe.Event,
    "invoice": stripe.Invoice,
    "invoice_payment": stripe.InvoicePayment,
    "invoiceitem": stripe.InvoiceItem,
    "line_item": stripe.InvoiceLineItem,
    "list": stripe.ListObject,
    "payment_method": stripe.PaymentMethod,
    "refund": stripe.Refund,
    "setup_intent": stripe.SetupIntent,
    "tax_id": stripe.TaxId,
    "tax_rate": stripe.TaxRate,
    "webhook_endpoint": stripe.WebhookEndpoint,
}
LIST_FIELDS = {"object", "data", "has_more", "url", "total_count"}
NO_RETURN_TRIP = {("webhook_endpoint", "secret")}


def test_the_stand_in_has_the_api_version_that_the_sdk_pins() -> None:
    assert stripe.api_version == API_VERSION


async def test_every_field_of_every_object_is_declared_by_the_sdk(harness: StripeHarness) -> None:
    for thing in await one_of_each(harness):
        assert unknown_fields(thing) == []


async def test_every_field_that_the_sdk_declares_as_required_is_served(harness: StripeHarness) -> None:
    for thing in await one_of_each(harness):
        assert missing_fields(thing) == []


async def test_every_value_has_the_type_that_the_sdk_declares(harness: StripeHarness) -> None:
    for thing in await one_of_each(harness):
        assert wrong_values(thing) == []


async def test_an_invoice_has_none_of_the_fields_that_were_removed_with_version_basil(harness: StripeHarness) -> None:
    invoice = await harness.fetch(await harness.open())

    assert not {"paid", "charge", "payment_intent", "paid_out_of_band"} & set(invoice.to_dict())


async def test_the_payments_of_an_invoice_are_served_only_when_expanded(harness: StripeHarness) -> None:
    invoice = await harness.open()

    assert "payments" not in (await harness.fetch(invoice, expand=())).to_dict()
    assert len((await harness.fetch(invoice)).to_dict()["payments"]["data"]) == 1


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_parameter_is_declared_by_the_sdk(operation: Operation) -> None:
    name = operation.sdk_parameters or "AccountRetrieveParams"
    declared = attrgetter(name)(stripe.params).__annotations__

    assert set(operation.schema) - set(declared) == set()


async def one_of_each(harness: StripeHarness) -> list[dict[str, Any]]:
    """At least one object of every kind, some in their first and some in their last state."""
    invoice = await harness.open()
    for action in ("pay", "refund", "dispute", "credit_note"):
        await harness.act(invoice, action)
    customers = harness.client().v1.customers
    await customers.tax_ids.create_async(str(invoice.customer), {"type": "id_npwp", "value": "12.345.678.9-012.345"})
    await harness.client().v1.tax_rates.create_async({"display_name": "PPN", "percentage": 11, "inclusive": False})
    for action, options in (
        ("set_customer_balance", {"amount": 5}),
        ("set_coupon", {"percent": "5"}),
        ("transfer", {"amount": 5}),
    ):
        await harness.act(invoice, action, **options)
    customer = await customers.update_async(
        str(invoice.customer), {"expand": ["invoice_credit_balance", "cash_balance"]}
    )
    session = await harness.card_page(str(invoice.customer))
    await harness.save_card(session)
    await harness.card_page(str(invoice.customer))
    await harness.open()
    await harness.draft()
    account = await harness.client().v1.accounts.retrieve_current_async()
    expanded = await harness.fetch(invoice, expand=("payments", "amount_paid_off_stripe", "customer"))
    kept = [thing for kind in KINDS for thing in harness.sandbox.account.objects[kind].values()]
    assert {thing["object"] for thing in kept} == set(KINDS)
    return [*kept, account.to_dict(), expanded.to_dict(), customer.to_dict()]


def unknown_fields(thing: dict[str, Any], cls: type[stripe.StripeObject] | None = None, path: str = "") -> list[str]:
    """Paths of fields that are served but not declared, including nested objects and lists."""
    cls = cls or CLASSES[thing["object"]]
    path = path or cls.__name__
    declared = LIST_FIELDS if cls is stripe.ListObject else set(typing.get_type_hints(cls, localns=TypeNames()))
    found = [f"{path}.{name}" for name in thing if name not in declared]
    for name, value in thing.items():
        inner = cls._inner_class_types.get(name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict) and (inner or "object" in each) and name != "metadata":
                found += unknown_fields(each, inner, f"{path}.{name}")
    return found


def missing_fields(thing: dict[str, Any]) -> list[str]:
    """Fields that the class declares as never absent and never null, but that are not served."""
    cls = CLASSES[thing["object"]]
    hints = typing.get_type_hints(cls, localns=TypeNames())
    required = [name for name, hint in hints.items() if not name.startswith("_") and not is_optional(hint)]
    return [f"{cls.__name__}.{name}" for name in required if name != "OBJECT_NAME" and thing.get(name) is None]


def wrong_values(thing: dict[str, Any]) -> list[str]:
    """Fields whose value is of no type that the class declares; only of fields that hold plain values."""
    cls = CLASSES[thing["object"]]
    hints = typing.get_type_hints(cls, localns=TypeNames())
    return [
        f"{cls.__name__}.{name}={thing[name]!r}" for name in thing.keys() & hints if not fits(thing[name], hints[name])
    ]


def fits(value: Any, hint: Any) -> bool:
    plain = {int, str, bool, float, type(None)}
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is typing.Union:
        return any(fits(value, option) for option in typing.get_args(hint))
    return type(value) is hint if hint in plain else type(value) not in plain - {str}


def is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


class TypeNames(dict[str, Any]):
    """Resolves names that the SDK imports only for type checkers."""

    def __missing__(self, name: str) -> Any:
        return getattr(stripe, name, Any)
