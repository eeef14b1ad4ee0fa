"""Invoice actions without an API call: what the customer, the bank or a person in the dashboard does."""

from collections.abc import Callable
from typing import Any

from server.sandbox.stripe import balances, invoices
from server.sandbox.stripe.account import Object, StripeAccount

Action = Callable[..., Any]
"""Called with the account, the invoice, and the action's own options as keywords."""


def change_fields(_account: StripeAccount, invoice: Object, *, fields: Object) -> None:
    """Overwrite fields of the invoice, without event or check: for example a wrong livemode, amount or currency."""
    for path, value in fields.items():
        set_path(invoice, path, value)


def set_tax(account: StripeAccount, invoice: Object, *, percent: str) -> None:
    """Set the tax that finalizing the draft adds."""
    account.private[invoice["id"]]["tax_percent"] = percent


def start_payment(account: StripeAccount, invoice: Object) -> None:
    """Begin an asynchronous payment: until it ends, voiding is refused."""
    account.private[invoice["id"]]["payment_pending"] = True


def emit(account: StripeAccount, invoice: Object, *, event: str) -> None:
    """Record an event of this type with the current invoice, although nothing happened."""
    account.emit(event, invoice)


def set_path(target: Any, path: str, value: Any) -> None:
    """Set `a.b.0.c` inside nested objects and lists."""
    *parents, last = path.split(".")
    for name in parents:
        target = target[int(name)] if isinstance(target, list) else target[name]
    target[last] = value


ACTIONS: dict[str, Action] = {
    "change": change_fields,
    "close_dispute": invoices.close_dispute,
    "credit_note": invoices.create_credit_note,
    "delete": invoices.delete_draft,
    "delete_customer": lambda account, invoice: balances.delete_customer(
        account, account.find("customer", invoice["customer"])
    ),
    "dispute": invoices.dispute,
    "emit": emit,
    "escalate_dispute": invoices.escalate_dispute,
    "expire_links": invoices.renew_links,
    "fail_payment": invoices.fail_payment,
    "finalize": invoices.finalize,
    "mark_uncollectible": invoices.mark_uncollectible,
    "overpay": invoices.overpay,
    "pay": invoices.receive_payment,
    "refund": invoices.refund,
    "set_coupon": balances.set_coupon,
    "set_customer_balance": balances.set_customer_balance,
    "set_tax": set_tax,
    "start_payment": start_payment,
    "transfer": invoices.receive_transfer,
    "void": invoices.void,
}
"""By name in the control API."""
