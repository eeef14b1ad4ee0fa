"""What happens to an invoice without an API call of ours: the customer, the bank or a person in the dashboard acts."""

from collections.abc import Callable
from typing import Any

from server.sandbox.stripe import invoicing, settling
from server.sandbox.stripe.books import Books, Object

Action = Callable[..., Any]
"""Takes the books, the invoice, and the action's own options as keywords."""


def change(_books: Books, invoice: Object, *, fields: Object) -> None:
    """Overwrite fields of the invoice, silently and against every rule: a wrong livemode, amount or currency."""
    for path, value in fields.items():
        set_path(invoice, path, value)


def set_tax(books: Books, invoice: Object, *, percent: str) -> None:
    """Tax that is added when the draft is finalized."""
    books.private[invoice["id"]]["tax_percent"] = percent


def set_customer_balance(books: Books, invoice: Object, *, amount: int) -> None:
    """The customer's balance in minor units: positive is owed, negative is credit that the next finalize uses."""
    books.find("customer", invoice["customer"])["balance"] = amount


def start_payment(books: Books, invoice: Object) -> None:
    """An asynchronous payment is under way: until it ends, voiding is refused."""
    books.private[invoice["id"]]["payment_pending"] = True


def emit(books: Books, invoice: Object, *, event: str) -> None:
    """An event of this type with the invoice as it is, although nothing happened."""
    books.emit(event, invoice)


def set_path(target: Any, path: str, value: Any) -> None:
    """Set `a.b.0.c` inside nested objects and lists."""
    *parents, last = path.split(".")
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target[name]
    target[last] = value


ACTIONS: dict[str, Action] = {
    "change": change,
    "close_dispute": settling.close_dispute,
    "credit_note": settling.credit,
    "delete": settling.delete_draft,
    "dispute": settling.dispute,
    "emit": emit,
    "expire_links": invoicing.renew_links,
    "fail_payment": settling.fail_payment,
    "finalize": settling.finalize,
    "mark_uncollectible": settling.mark_uncollectible,
    "overpay": settling.overpay,
    "pay": settling.receive,
    "refund": settling.refund,
    "set_customer_balance": set_customer_balance,
    "set_tax": set_tax,
    "start_payment": start_payment,
    "void": settling.void,
}
"""Each by its name in the control API."""
