"""The stand-in's objects and parameters have the names that the installed SDK knows: no more, and none missing."""

import typing
from typing import Any

import pytest
import stripe

from server.sandbox.stripe.books import API_VERSION, KINDS
from server.sandbox.stripe.operations import OPERATIONS, Operation
from tests.integration.sandbox.stripe_world import World

CLASSES: dict[str, type[stripe.StripeObject]] = {
    "account": stripe.Account,
    "charge": stripe.Charge,
    "credit_note": stripe.CreditNote,
    "customer": stripe.Customer,
    "dispute": stripe.Dispute,
    "event": stripe.Event,
    "invoice": stripe.Invoice,
    "invoice_payment": stripe.InvoicePayment,
    "invoiceitem": stripe.InvoiceItem,
    "line_item": stripe.InvoiceLineItem,
    "list": stripe.ListObject,
    "refund": stripe.Refund,
    "webhook_endpoint": stripe.WebhookEndpoint,
}
LIST_FIELDS = {"object", "data", "has_more", "url", "total_count"}
NO_RETURN_TRIP = {("webhook_endpoint", "secret")}


def test_the_stand_in_speaks_the_version_that_the_sdk_pins() -> None:
    assert stripe.api_version == API_VERSION


async def test_every_field_of_every_object_is_one_that_the_sdk_declares(world: World) -> None:
    for thing in await one_of_each(world):
        assert unknown_fields(thing) == []


async def test_every_field_that_the_sdk_declares_as_always_there_is_served(world: World) -> None:
    for thing in await one_of_each(world):
        assert missing_fields(thing) == []


async def test_an_invoice_has_none_of_the_fields_that_were_removed_with_version_basil(world: World) -> None:
    invoice = await world.fetch(await world.open())

    assert not {"paid", "charge", "payment_intent", "paid_out_of_band"} & set(invoice.to_dict())


async def test_the_list_of_an_invoices_payments_is_only_there_when_expanded(world: World) -> None:
    invoice = await world.open()

    assert "payments" not in (await world.fetch(invoice, expand=())).to_dict()
    assert len((await world.fetch(invoice)).to_dict()["payments"]["data"]) == 1


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_every_parameter_is_one_that_the_sdk_declares(operation: Operation) -> None:
    name = operation.sdk_parameters or "AccountRetrieveParams"
    declared = getattr(stripe.params, name).__annotations__

    assert set(operation.schema) - set(declared) == set()


async def one_of_each(world: World) -> list[dict[str, Any]]:
    """Every kind of object at least once, in its last and its first state."""
    invoice = await world.open()
    for action in ("pay", "refund", "dispute", "credit_note"):
        await world.act(invoice, action)
    await world.open()
    await world.draft()
    account = await world.client().v1.accounts.retrieve_current_async()
    expanded = await world.fetch(invoice, expand=("payments", "amount_paid_off_stripe", "customer"))
    kept = [thing for kind in KINDS for thing in world.sandbox.books.objects[kind].values()]
    assert {thing["object"] for thing in kept} == set(KINDS)
    return [*kept, account.to_dict(), expanded.to_dict()]


def unknown_fields(thing: dict[str, Any], cls: type[stripe.StripeObject] | None = None, path: str = "") -> list[str]:
    """Paths of what is served and not declared, nested objects and lists included."""
    cls = cls or CLASSES[thing["object"]]
    path = path or cls.__name__
    declared = LIST_FIELDS if cls is stripe.ListObject else set(typing.get_type_hints(cls, localns=Anything()))
    found = [f"{path}.{name}" for name in thing if name not in declared]
    for name, value in thing.items():
        inner = cls._inner_class_types.get(name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict) and (inner or "object" in each) and name != "metadata":
                found += unknown_fields(each, inner, f"{path}.{name}")
    return found


def missing_fields(thing: dict[str, Any]) -> list[str]:
    """What the class declares as never absent and never null, and is not served."""
    cls = CLASSES[thing["object"]]
    hints = typing.get_type_hints(cls, localns=Anything())
    certain = [name for name, hint in hints.items() if not name.startswith("_") and not is_optional(hint)]
    return [f"{cls.__name__}.{name}" for name in certain if name != "OBJECT_NAME" and thing.get(name) is None]


def is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


class Anything(dict[str, Any]):
    """Resolves the names that the SDK imports for type checkers only."""

    def __missing__(self, name: str) -> Any:
        return getattr(stripe, name, Any)
