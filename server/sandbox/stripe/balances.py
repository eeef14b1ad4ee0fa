"""A customer's balance (credit and debt by currency), cash balance, coupon and tax ids.

docs/stripe.md says where each rule comes from.
"""

from typing import Any

from server.sandbox.stripe import objects
from server.sandbox.stripe.account import Object, StripeAccount


def balance_of(account: StripeAccount, customer: Object, currency: str) -> int:
    """The balance in minor units: positive is owed, negative is credit."""
    return sum(each["amount"] for each in transactions_of(account, customer) if each["currency"] == currency)


def transactions_of(account: StripeAccount, customer: Object) -> list[Object]:
    """Every change of the customer's balance, oldest first."""
    kept = account.objects["customer_balance_transaction"].values()
    return [each for each in kept if each["customer"] == customer["id"]]


def change_balance(
    account: StripeAccount, customer: Object, *, amount: int, kind: str, currency: str, invoice: str | None = None
) -> None:
    """Add a transaction of `amount` minor units to the balance; 0 adds none."""
    if not amount:
        return
    transaction = objects.new_balance_transaction(account, customer, amount=amount, kind=kind, currency=currency)
    transaction["invoice"] = invoice
    transaction["ending_balance"] = balance_of(account, customer, currency) + amount
    account.add(transaction)
    customer["currency"] = customer["currency"] or currency
    customer["balance"] = balance_of(account, customer, customer["currency"])


def take_balance(account: StripeAccount, customer: Object, invoice: Object) -> int:
    """Use the balance for an invoice that is being finalized; returns what is due.

    An amount below the currency's minimum charge is added to the balance, and nothing is due. Not for a customer with a
    cash balance.
    """
    currency, starting = invoice["currency"], balance_of(account, customer, invoice["currency"])
    owed = int(invoice["total"]) + starting
    minimum = 1 if customer.get("cash_balance") else account.settings["minimum_charges"].get(currency, 1)
    ending = 0 if owed >= minimum else owed
    applied = min(ending, 0) - starting if starting < 0 or owed >= minimum else 0
    change = {"currency": currency, "invoice": invoice["id"]}
    change_balance(account, customer, amount=applied, kind="applied_to_invoice", **change)
    change_balance(account, customer, amount=ending - starting - applied, kind="invoice_too_small", **change)
    invoice.update(starting_balance=starting, ending_balance=ending)
    return owed if owed >= minimum else 0


def return_balance(account: StripeAccount, invoice: Object) -> None:
    """Undo what an invoice did to the balance, as it is voided."""
    customer = account.objects["customer"][invoice["customer"]]
    change = invoice["starting_balance"] - invoice["ending_balance"]
    account_change = {"kind": "unapplied_from_invoice", "currency": invoice["currency"], "invoice": invoice["id"]}
    change_balance(account, customer, amount=change, **account_change)


def set_customer_balance(
    account: StripeAccount, invoice: Object, *, amount: int, kind: str = "adjustment", currency: str = ""
) -> None:
    """Bring the balance of the invoice's customer to `amount`, by a transaction of this kind."""
    customer, currency = account.find("customer", invoice["customer"]), currency or invoice["currency"]
    difference = amount - balance_of(account, customer, currency)
    change_balance(account, customer, amount=difference, kind=kind, currency=currency)


def set_coupon(account: StripeAccount, invoice: Object, *, percent: str) -> None:
    """Give the invoice's customer a coupon, which later invoices inherit unless they name their discounts."""
    customer = account.find("customer", invoice["customer"])
    customer["discount"] = objects.new_discount(account, customer)
    account.private[customer["discount"]["id"]] = {"percent": percent}


def delete_customer(_account: StripeAccount, customer: Object, _given: Any = None) -> Object:
    """Delete a customer: no call finds it any more; its finalized invoices stay."""
    customer["deleted"] = True
    return {"id": customer["id"], "object": "customer", "deleted": True}


def fund_cash(account: StripeAccount, invoice: Object, *, amount: int) -> int:
    """Receive a bank transfer for the customer of an invoice; returns the cash of its currency."""
    customer = account.find("customer", invoice["customer"])
    cash = customer.setdefault("cash_balance", None) or objects.new_cash_balance(account, customer)
    customer["cash_balance"] = cash
    cash["available"][invoice["currency"]] = cash["available"].get(invoice["currency"], 0) + amount
    return int(cash["available"][invoice["currency"]])


def take_cash(account: StripeAccount, invoice: Object) -> bool:
    """Take what an invoice needs from its customer's cash; False when there is not enough, and nothing is taken."""
    cash = (account.objects["customer"][invoice["customer"]].get("cash_balance") or {}).get("available", {})
    if not 0 < invoice["amount_remaining"] <= cash.get(invoice["currency"], 0):
        return False
    cash[invoice["currency"]] -= invoice["amount_remaining"]
    return True


def tax_ids_of(account: StripeAccount, customer: Object) -> list[Object]:
    """The customer's tax ids, oldest first."""
    return [each for each in account.objects["tax_id"].values() if each["customer"] == customer["id"]]


def create_tax_id(account: StripeAccount, customer: Object, given: Object) -> Object:
    """Add a tax id to a customer; Stripe checks the value later, and this never does."""
    return account.add(objects.new_tax_id(account, customer, given))


def delete_tax_id(account: StripeAccount, tax_id: Object, _given: Object) -> Object:
    """Delete a tax id."""
    del account.objects["tax_id"][tax_id["id"]]
    return {"id": tax_id["id"], "object": "tax_id", "deleted": True}


def create_tax_rate(account: StripeAccount, given: Object) -> Object:
    """Make a tax rate."""
    return account.add(objects.new_tax_rate(account, given))
