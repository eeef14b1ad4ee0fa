"""An invoice from its draft to its end: items, finalize, payment, void, refund, dispute and credit note.

Functions over the account's state; none knows HTTP.
"""

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from server.sandbox.stripe import cards, objects
from server.sandbox.stripe.account import Object, StripeAccount
from server.sandbox.stripe.balances import (
    balance_of,
    change_balance,
    fund_cash,
    return_balance,
    take_balance,
    take_cash,
    tax_ids_of,
)
from server.sandbox.stripe.errors import ApiError, not_allowed

_SECONDS_PER_DAY = 86_400
_LARGEST_AMOUNTS = {"idr": 999_999_999_999}
_LARGEST_AMOUNT = 99_999_999
_PAYABLE = {"open", "uncollectible"}
_NOT_PAYABLE = {
    "draft": "Draft invoices can't be paid.",
    "paid": "Invoice is already paid",
    "void": "Voided invoices cannot be paid.",
}


def create_customer(account: StripeAccount, given: Object) -> Object:
    """Create a customer with the given fields."""
    customer = account.add(objects.new_customer(account) | given)
    account.emit("customer.created", customer)
    return customer


def update_fields(account: StripeAccount, resource: Object, given: Object) -> Object:
    """Set fields of an object. Metadata is merged; an empty value removes its entry."""
    if "metadata" in given:
        merged = resource["metadata"] | given["metadata"] if given["metadata"] else {}
        given = given | {"metadata": {name: value for name, value in merged.items() if value != ""}}
    previous = {name: resource.get(name) for name in given}
    resource.update(given)
    if resource["object"] in {"customer", "invoice"}:
        account.emit(f"{resource['object']}.updated", resource, previous=previous)
    return resource


def create_invoice(account: StripeAccount, given: Object) -> Object:
    """Create a draft without the customer's pending items (`pending_invoice_items_behavior` is always exclude here)."""
    customer = account.find("customer", given["customer"], param="customer")
    currency = given.get("currency") or customer["currency"] or "usd"
    _require_currency(currency)
    by_mail = given.get("collection_method") == "send_invoice"
    if by_mail and not {"days_until_due", "due_date"} & set(given):
        raise ApiError("An invoice with collection_method=send_invoice needs days_until_due or due_date.")
    if not by_mail and "days_until_due" in given:
        raise ApiError("You can only specify days_until_due for an invoice with collection_method=send_invoice.")
    invoice = objects.new_invoice(account, customer, currency=currency)
    _set_fields(invoice, given)
    if "discounts" not in given and customer["discount"]:
        invoice["discounts"] = [customer["discount"]["id"]]
    account.private[invoice["id"]] = {
        "days_until_due": given.get("days_until_due"),
        "tax_percent": account.settings["tax_percent"],
        "payment_pending": False,
        "payments": [],
        "token": None,
    }
    account.add(invoice)
    _compute_totals(account, invoice)
    account.emit("invoice.created", invoice)
    return invoice


def update_invoice(account: StripeAccount, invoice: Object, given: Object) -> Object:
    """Change a draft; after finalizing only `metadata` and `auto_advance` may change."""
    if invoice["status"] != "draft" and set(given) - {"metadata", "auto_advance"}:
        raise not_allowed("Finalized invoices can't be updated in this way", code="invoice_not_editable")
    if "days_until_due" in given:
        account.private[invoice["id"]]["days_until_due"] = given["days_until_due"]
    own = {name: value for name, value in given.items() if name in invoice and name != "payment_settings"}
    _set_fields(invoice, {name: given[name] for name in ("payment_settings",) if name in given})
    return update_fields(account, invoice, own)


def add_item(account: StripeAccount, given: Object) -> Object:
    """Add a line to a draft: `amount`, or `unit_amount_decimal` times `quantity`, rounded half up."""
    invoice = account.find("invoice", given["invoice"], param="invoice")
    if invoice["status"] != "draft":
        raise not_allowed("You can only add invoice items to draft invoices.", code="invoice_not_editable")
    if given.get("customer", invoice["customer"]) != invoice["customer"]:
        raise ApiError("The invoice belongs to another customer.", param="customer")
    if given.get("currency", invoice["currency"]) != invoice["currency"]:
        raise ApiError("The currency of the invoice item must match that of the invoice.", param="currency")
    quantity = given.get("quantity", 1)
    if ("amount" in given) == ("unit_amount_decimal" in given):
        raise ApiError("You must give exactly one of amount and unit_amount_decimal.", param="amount")
    unit_amount = given.get("unit_amount_decimal", Decimal(given.get("amount", 0)))
    amount = given["amount"] if "amount" in given else _rounded(unit_amount * quantity)
    if abs(amount) > _LARGEST_AMOUNTS.get(invoice["currency"], _LARGEST_AMOUNT):
        raise ApiError("The amount is too large.", code="amount_too_large", param="amount")
    item = objects.new_item(account, invoice, amount=amount, unit_amount=unit_amount, quantity=quantity)
    item.update({name: given[name] for name in ("description", "metadata") if name in given})
    item["tax_rates"] = [account.find("tax_rate", each, param="tax_rates") for each in given.get("tax_rates", [])]
    account.private[invoice["id"]]["tax_inclusive"] = given.get("tax_behavior") == "inclusive"
    account.add(item)
    invoice["lines"]["data"].append(objects.new_line(account, item))
    invoice["lines"]["total_count"] += 1
    _compute_totals(account, invoice)
    account.emit("invoiceitem.created", item)
    return item


def finalize(account: StripeAccount, invoice: Object) -> Object:
    """Make a draft payable: with number, dates and hosted links, and a default payment for the amount due.

    The customer's balance is used up. An amount below the currency's minimum charge is added to that balance instead,
    nothing is due, and the invoice is paid at once with `amount_paid` 0.
    """
    if invoice["status"] != "draft":
        raise not_allowed("This invoice is already finalized, you can't re-finalize a non-draft invoice.")
    _compute_totals(account, invoice)
    customer = account.find("customer", invoice["customer"])
    if invoice["automatic_tax"]["enabled"] and invoice["automatic_tax"]["status"] != "complete":
        account.emit("invoice.finalization_failed", invoice)
        raise not_allowed("The customer's location isn't recognized.", code="customer_tax_location_invalid")
    due = take_balance(account, customer, invoice)
    customer["currency"] = customer["currency"] or invoice["currency"]
    invoice.update(
        amount_due=due,
        amount_remaining=due,
        customer_tax_ids=[{name: each[name] for name in ("type", "value")} for each in tax_ids_of(account, customer)],
        number=f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04}",
        status="open",
    )
    customer["next_invoice_sequence"] += 1
    _set_dates(account, invoice)
    renew_links(account, invoice)
    payment = objects.new_payment(account, invoice, amount=invoice["amount_due"], payment_type="payment_intent")
    account.add(payment | {"is_default": True})
    account.private[invoice["id"]]["payments"].append(payment["id"])
    account.emit("invoice.finalized", invoice)
    _mark_paid_if_nothing_due(account, invoice)
    if take_cash(account, invoice):
        receive_payment(account, invoice)
    return invoice


def renew_links(account: StripeAccount, invoice: Object) -> None:
    """Create new links to the hosted page and the PDF; the earlier links expire."""
    token = account.new_id("test_")
    account.tokens[token] = invoice["id"]
    account.private[invoice["id"]]["token"] = token
    account.set_links(invoice, token)


def receive_payment(
    account: StripeAccount, invoice: Object, *, amount: int | None = None, out_of_band: bool = False
) -> Object:
    """Record money: the amount remaining, or `amount` minor units, which may be less (stays open) or more (overpaid).

    Out of band: a person recorded it in the dashboard, so there is a payment record and no charge.
    """
    if invoice["status"] not in _PAYABLE:
        raise not_allowed(_NOT_PAYABLE[invoice["status"]])
    arrived = invoice["amount_remaining"] if amount is None else amount
    applied = min(arrived, invoice["amount_remaining"])
    _record_payment(account, invoice, amount=applied, arrived=arrived, out_of_band=out_of_band)
    account.private[invoice["id"]]["payment_pending"] = False
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    invoice["amount_paid"] += applied
    invoice["amount_remaining"] -= applied
    _mark_paid_if_nothing_due(account, invoice)
    if arrived > applied:
        overpay(account, invoice, amount=arrived - applied)
    return invoice


def overpay(account: StripeAccount, invoice: Object, *, amount: int) -> None:
    """Record `amount` minor units more than was due: they become credit of the customer."""
    invoice["amount_overpaid"] += amount
    customer, change = account.find("customer", invoice["customer"]), {"currency": invoice["currency"]}
    change_balance(account, customer, amount=-amount, kind="invoice_overpaid", invoice=invoice["id"], **change)
    account.emit("invoice.overpaid", invoice)


def fail_payment(account: StripeAccount, invoice: Object) -> None:
    """Record a refused payment attempt; the invoice stays open."""
    account.private[invoice["id"]]["payment_pending"] = False
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    account.emit("invoice.payment_failed", invoice)


def require_action(account: StripeAccount, invoice: Object) -> None:
    """Record a payment attempt that waits for the customer's authentication; the invoice stays open."""
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    account.emit("invoice.payment_action_required", invoice)


def pay(account: StripeAccount, invoice: Object, *, payment_method: str | None) -> Object:
    """The API's pay, by a test card or a saved one; without one the call is refused."""
    if payment_method is None:
        raise not_allowed("This customer has no default payment method.", code="resource_missing")
    if invoice["status"] not in _PAYABLE:
        raise not_allowed(_NOT_PAYABLE[invoice["status"]])
    match cards.behaviour_of(account, payment_method, customer=invoice["customer"]):
        case "declined":
            fail_payment(account, invoice)
            raise cards.declined()
        case "authentication":
            require_action(account, invoice)
            raise cards.needs_authentication()
    return receive_payment(account, invoice)


def void(account: StripeAccount, invoice: Object) -> Object:
    """Void an unpaid invoice, and give the balance that it used up back to the customer.

    Refused while a payment is pending, and once a part is paid. Which code Stripe then answers could not be checked
    without an account.
    """
    if invoice["status"] not in _PAYABLE:
        raise not_allowed(f"You can only void an open or uncollectible invoice; this one is {invoice['status']}.")
    if account.private[invoice["id"]]["payment_pending"]:
        message = "This invoice can't be voided while a payment for it is processing."
        raise not_allowed(message, code="payment_intent_unexpected_state")
    if invoice["amount_paid"]:
        raise not_allowed("You can't void an invoice that has payments.")
    return_balance(account, invoice)
    invoice["status"] = "void"
    invoice["status_transitions"]["voided_at"] = account.now()
    _cancel_open_payments(account, invoice)
    account.emit("invoice.voided", invoice)
    return invoice


def mark_uncollectible(account: StripeAccount, invoice: Object) -> Object:
    """Mark an open invoice as not expected to be paid; it may still be paid or voided."""
    if invoice["status"] != "open":
        raise not_allowed(f"You can only mark an open invoice as uncollectible; this one is {invoice['status']}.")
    invoice["status"] = "uncollectible"
    invoice["status_transitions"]["marked_uncollectible_at"] = account.now()
    account.emit("invoice.marked_uncollectible", invoice)
    return invoice


def delete_draft(account: StripeAccount, invoice: Object) -> Object:
    """Delete a draft."""
    if invoice["status"] != "draft":
        raise not_allowed("You can only delete draft invoices.")
    del account.objects["invoice"][invoice["id"]]
    account.emit("invoice.deleted", invoice)
    return {"id": invoice["id"], "object": "invoice", "deleted": True}


def create_credit_note(
    account: StripeAccount, invoice: Object, *, amount: int | None = None, to_balance: bool = False
) -> Object:
    """Issue a credit note: it lowers what is due on an open invoice (zero: paid without money).

    `to_balance`: what was paid becomes credit of the customer.
    """
    before_payment = invoice["status"] in _PAYABLE
    amount = (invoice["amount_remaining"] if before_payment else invoice["total"]) if amount is None else amount
    note = account.add(objects.new_credit_note(account, invoice, amount=amount, before_payment=before_payment))
    if before_payment:
        invoice["pre_payment_credit_notes_amount"] += amount
        invoice["amount_due"] -= amount
        invoice["amount_remaining"] -= amount
    else:
        invoice["post_payment_credit_notes_amount"] += amount
    if to_balance and not before_payment:
        customer, currency = account.find("customer", invoice["customer"]), invoice["currency"]
        change_balance(account, customer, amount=-amount, kind="credit_note", currency=currency, invoice=invoice["id"])
    account.emit("credit_note.created", note)
    _mark_paid_if_nothing_due(account, invoice)
    return note


def refund(account: StripeAccount, invoice: Object, *, amount: int | None = None) -> Object:
    """Refund the payer: the whole charge, or `amount` minor units."""
    charge = _latest_charge(account, invoice)
    amount = charge["amount"] - charge["amount_refunded"] if amount is None else amount
    refunded = account.add(objects.new_refund(account, charge, amount=amount))
    previous = {"amount_refunded": charge["amount_refunded"]}
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] >= charge["amount"]
    account.emit("refund.created", refunded)
    account.emit("charge.refunded", charge, previous=previous)
    return refunded


def dispute(account: StripeAccount, invoice: Object, *, inquiry: bool = False) -> Object:
    """Open a dispute: the payer's bank withholds the money until it is closed; after an inquiry it does not."""
    charge = _latest_charge(account, invoice)
    charge["disputed"] = not inquiry
    opened = objects.new_dispute(account, charge, status="warning_needs_response" if inquiry else "needs_response")
    account.emit("charge.dispute.created", account.add(opened))
    if not inquiry:
        account.emit("charge.dispute.funds_withdrawn", opened)
    return opened


def escalate_dispute(account: StripeAccount, invoice: Object) -> Object:
    """Turn the open inquiry into a dispute."""
    opened = _open_dispute(account, invoice)
    opened["status"] = "needs_response"
    account.emit("charge.dispute.updated", opened, previous={"status": "warning_needs_response"})
    account.emit("charge.dispute.funds_withdrawn", opened)
    return opened


def close_dispute(account: StripeAccount, invoice: Object, *, outcome: str = "lost") -> Object:
    """Close the open dispute: `won` or `lost`, seen from the merchant; an inquiry: `warning_closed`."""
    opened = _open_dispute(account, invoice)
    opened["status"] = outcome
    account.emit("charge.dispute.closed", opened)
    return opened


def _open_dispute(account: StripeAccount, invoice: Object) -> Object:
    charge = _latest_charge(account, invoice)
    for opened in account.objects["dispute"].values():
        if opened["charge"] == charge["id"] and opened["status"].endswith("needs_response"):
            return opened
    raise not_allowed("This invoice's charge has no open dispute.")


def payments_of(account: StripeAccount, invoice: Object) -> list[Object]:
    """Every payment of an invoice, oldest first."""
    return [account.find("invoice_payment", identifier) for identifier in account.private[invoice["id"]]["payments"]]


def receive_transfer(account: StripeAccount, invoice: Object, *, amount: int) -> Object:
    """Receive a bank transfer into the customer's cash, which pays the invoice once it is enough for all of it."""
    fund_cash(account, invoice, amount=amount)
    if invoice["status"] in _PAYABLE and take_cash(account, invoice):
        receive_payment(account, invoice)
    return invoice


def _compute_totals(account: StripeAccount, invoice: Object) -> None:
    """Set a draft's totals: lines, coupon, tax, and the customer's balance (positive: owed, negative: credit)."""
    customer = account.find("customer", invoice["customer"])
    subtotal = sum(line["amount"] for line in invoice["lines"]["data"])
    percents = [Decimal(account.private[discount]["percent"]) for discount in invoice["discounts"]]
    discount = sum(_rounded(subtotal * percent / 100) for percent in percents)
    balance = balance_of(account, customer, invoice["currency"])
    taxes = _taxes(account, invoice, customer, taxable=subtotal - discount)
    added = sum(tax["amount"] for tax in taxes if tax["tax_behavior"] == "exclusive")
    included = sum(tax["amount"] for tax in taxes) - added
    due = max(0, subtotal - discount + added + balance)
    invoice.update(
        amount_due=due,
        amount_remaining=due,
        starting_balance=balance,
        subtotal=subtotal,
        subtotal_excluding_tax=subtotal - included,
        total=subtotal - discount + added,
        total_discount_amounts=[{"amount": discount, "discount": each} for each in invoice["discounts"]],
        total_excluding_tax=subtotal - discount - included,
        total_taxes=taxes,
    )


def _taxes(account: StripeAccount, invoice: Object, customer: Object, *, taxable: int) -> list[Object]:
    """The taxes of a draft: of its items' rates, else automatic ones, else the account's `tax_percent`."""
    items = [each for each in account.objects["invoiceitem"].values() if each["invoice"] == invoice["id"]]
    rates = [(str(rate["percentage"]), rate["inclusive"], rate["id"]) for item in items for rate in item["tax_rates"]]
    private, automatic = account.private[invoice["id"]], invoice["automatic_tax"]
    if automatic["enabled"]:
        country = (customer["address"] or {}).get("country")
        automatic["status"] = "complete" if country else "requires_location_inputs"
        percent = account.settings["automatic_tax"].get(country, "0")
        rates = [(percent, private.get("tax_inclusive", False), account.new_id("txr_"))] if country else []
    elif not rates and Decimal(private["tax_percent"]):
        rates = [(private["tax_percent"], False, account.new_id("txr_"))]
    found = []
    for percent, inclusive, identifier in rates:
        parts = 100 + Decimal(percent) if inclusive else Decimal(100)
        amount = _rounded(Decimal(taxable) * Decimal(percent) / parts)
        found.append(_tax(identifier, amount=amount, taxable=taxable, inclusive=inclusive))
    return found


def _rounded(amount: Decimal) -> int:
    """The nearest minor unit, half up."""
    return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _mark_paid_if_nothing_due(account: StripeAccount, invoice: Object) -> None:
    """Mark an open invoice with nothing left to pay as paid, whether or not money arrived."""
    if invoice["status"] in _PAYABLE and invoice["amount_remaining"] == 0:
        invoice["status"] = "paid"
        invoice["attempted"] = True
        invoice["status_transitions"]["paid_at"] = account.now()
        _cancel_open_payments(account, invoice)
        account.emit("invoice.paid", invoice)
        account.emit("invoice.payment_succeeded", invoice)


def _latest_charge(account: StripeAccount, invoice: Object) -> Object:
    """The latest charge for an invoice; refused when no money came through Stripe."""
    intents = {payment["payment"].get("payment_intent") for payment in payments_of(account, invoice)} - {None}
    for charge in reversed(account.objects["charge"].values()):
        if charge["payment_intent"] in intents:
            return charge
    raise not_allowed("This invoice has no charge.")


def _set_fields(invoice: Object, given: Object) -> None:
    for name, value in given.items():
        if name in {"automatic_tax", "payment_settings"}:
            invoice[name].update(_with_booleans(value))
        elif name in invoice:
            invoice[name] = value or [] if name == "discounts" else value


def _with_booleans(value: Any) -> Any:
    booleans = {"true": True, "false": False}
    if isinstance(value, dict):
        return {name: _with_booleans(inner) for name, inner in value.items()}
    return booleans.get(value, value) if isinstance(value, str) else value


def _set_dates(account: StripeAccount, invoice: Object) -> None:
    now, days = account.now(), account.private[invoice["id"]]["days_until_due"]
    invoice["effective_at"] = invoice["status_transitions"]["finalized_at"] = now
    if days is not None:
        invoice["due_date"] = now + days * _SECONDS_PER_DAY


def _tax(rate: str, *, amount: int, taxable: int, inclusive: bool) -> Object:
    return {
        "amount": amount,
        "tax_behavior": "inclusive" if inclusive else "exclusive",
        "tax_rate_details": {"tax_rate": rate},
        "taxability_reason": "standard_rated",
        "taxable_amount": taxable - amount if inclusive else taxable,
        "type": "tax_rate_details",
    }


def _require_currency(currency: str) -> None:
    if not (currency.isascii() and currency.isalpha() and currency.islower() and len(currency) == len("usd")):
        raise ApiError(f"Invalid currency: {currency}", param="currency")


def _record_payment(account: StripeAccount, invoice: Object, *, amount: int, arrived: int, out_of_band: bool) -> None:
    default = next((payment for payment in payments_of(account, invoice) if payment["status"] == "open"), None)
    whole = amount == invoice["amount_remaining"]
    if default and whole and not out_of_band:
        payment = default
    else:
        payment_type = "payment_record" if out_of_band else "payment_intent"
        payment = account.add(objects.new_payment(account, invoice, amount=amount, payment_type=payment_type))
        account.private[invoice["id"]]["payments"].append(payment["id"])
        if default:
            default["amount_requested"] -= amount
    payment.update(amount_paid=amount, status="paid")
    payment["status_transitions"]["paid_at"] = account.now()
    if not out_of_band:
        intent = payment["payment"]["payment_intent"]
        charge = objects.new_charge(account, invoice, amount=arrived, payment_intent=intent)
        account.emit("charge.succeeded", account.add(charge))
    account.emit("invoice_payment.paid", payment)


def _cancel_open_payments(account: StripeAccount, invoice: Object) -> None:
    for payment in payments_of(account, invoice):
        if payment["status"] == "open":
            payment["status"] = "canceled"
            payment["status_transitions"]["canceled_at"] = account.now()
