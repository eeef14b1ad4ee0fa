"""An invoice up to the moment that it is open: created, given items, finalized. Functions over the books."""

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from server.sandbox.stripe import objects
from server.sandbox.stripe.books import Books, Object
from server.sandbox.stripe.refusal import Refusal, not_allowed

_SECONDS_PER_DAY = 86_400
_LARGEST_AMOUNTS = {"idr": 999_999_999_999}
_LARGEST_AMOUNT = 99_999_999


def create_customer(books: Books, given: Object) -> Object:
    """A new customer with what the call says of it."""
    customer = books.add(objects.new_customer(books) | given)
    books.emit("customer.created", customer)
    return customer


def change(books: Books, thing: Object, given: Object) -> Object:
    """Set fields of an object; metadata is merged, and an empty value takes an entry away."""
    if "metadata" in given:
        merged = thing["metadata"] | given["metadata"] if given["metadata"] else {}
        given = given | {"metadata": {name: value for name, value in merged.items() if value != ""}}
    previous = {name: thing.get(name) for name in given}
    thing.update(given)
    if thing["object"] in {"customer", "invoice"}:
        books.emit(f"{thing['object']}.updated", thing, previous=previous)
    return thing


def create_invoice(books: Books, given: Object) -> Object:
    """A draft, without the customer's pending items (`pending_invoice_items_behavior` is always exclude here)."""
    customer = books.find("customer", given["customer"], param="customer")
    currency = given.get("currency") or customer["currency"] or "usd"
    _require_currency(currency)
    by_mail = given.get("collection_method") == "send_invoice"
    if by_mail and not {"days_until_due", "due_date"} & set(given):
        raise Refusal("An invoice with collection_method=send_invoice needs days_until_due or due_date.")
    invoice = objects.new_invoice(books, customer, currency=currency)
    _apply(invoice, given)
    books.private[invoice["id"]] = {
        "days_until_due": given.get("days_until_due"),
        "tax_percent": books.settings["tax_percent"],
        "payment_pending": False,
        "payments": [],
        "token": None,
    }
    books.add(invoice)
    compute(books, invoice)
    books.emit("invoice.created", invoice)
    return invoice


def update_invoice(books: Books, invoice: Object, given: Object) -> Object:
    """Change a draft; once finalized, only its metadata and whether it advances by itself."""
    if invoice["status"] != "draft" and set(given) - {"metadata", "auto_advance"}:
        raise not_allowed("Finalized invoices can't be updated in this way", code="invoice_not_editable")
    if "days_until_due" in given:
        books.private[invoice["id"]]["days_until_due"] = given["days_until_due"]
    own = {name: value for name, value in given.items() if name in invoice and name != "payment_settings"}
    _apply(invoice, {name: given[name] for name in ("payment_settings",) if name in given})
    return change(books, invoice, own)


def add_item(books: Books, given: Object) -> Object:
    """One more line on a draft: `amount`, or `unit_amount_decimal` times `quantity`, rounded half up."""
    invoice = books.find("invoice", given["invoice"], param="invoice")
    if invoice["status"] != "draft":
        raise not_allowed("You can only add invoice items to draft invoices.", code="invoice_not_editable")
    if given.get("customer", invoice["customer"]) != invoice["customer"]:
        raise Refusal("The invoice belongs to another customer.", param="customer")
    if given.get("currency", invoice["currency"]) != invoice["currency"]:
        raise Refusal("The currency of the invoice item must match that of the invoice.", param="currency")
    quantity = given.get("quantity", 1)
    if ("amount" in given) == ("unit_amount_decimal" in given):
        raise Refusal("You must give exactly one of amount and unit_amount_decimal.", param="amount")
    unit_amount = given.get("unit_amount_decimal", Decimal(given.get("amount", 0)))
    amount = given["amount"] if "amount" in given else rounded(unit_amount * quantity)
    if abs(amount) > _LARGEST_AMOUNTS.get(invoice["currency"], _LARGEST_AMOUNT):
        raise Refusal("The amount is too large.", code="amount_too_large", param="amount")
    item = objects.new_item(books, invoice, amount=amount, unit_amount=unit_amount, quantity=quantity)
    item.update({name: given[name] for name in ("description", "metadata") if name in given})
    books.add(item)
    invoice["lines"]["data"].append(objects.new_line(books, item))
    invoice["lines"]["total_count"] += 1
    compute(books, invoice)
    books.emit("invoiceitem.created", item)
    return item


def compute(books: Books, invoice: Object) -> None:
    """Totals of a draft: lines, tax on top of them, and the customer's balance (positive: owed, negative: credit)."""
    customer = books.find("customer", invoice["customer"])
    subtotal = sum(line["amount"] for line in invoice["lines"]["data"])
    percent = Decimal(books.private[invoice["id"]]["tax_percent"])
    tax = rounded(Decimal(subtotal) * percent / 100)
    due = max(0, subtotal + tax + customer["balance"])
    invoice.update(
        amount_due=due,
        amount_remaining=due,
        starting_balance=customer["balance"],
        subtotal=subtotal,
        subtotal_excluding_tax=subtotal,
        total=subtotal + tax,
        total_excluding_tax=subtotal,
        total_taxes=[_tax(books, amount=tax, taxable=subtotal)] if tax else [],
    )


def open_draft(books: Books, invoice: Object) -> None:
    """Make a draft payable: numbered, dated, with hosted links; its default payment asks for what is due.

    The customer's balance is used up. What is below the currency's minimum charge is added to that balance instead,
    and nothing is due.
    """
    if invoice["status"] != "draft":
        raise not_allowed("This invoice is already finalized, you can't re-finalize a non-draft invoice.")
    compute(books, invoice)
    customer = books.find("customer", invoice["customer"])
    owed = invoice["total"] + customer["balance"]
    chargeable = owed >= books.settings["minimum_charges"].get(invoice["currency"], 1)
    customer["balance"] = 0 if chargeable else owed
    customer["currency"] = customer["currency"] or invoice["currency"]
    invoice.update(
        amount_due=owed if chargeable else 0,
        amount_remaining=owed if chargeable else 0,
        ending_balance=customer["balance"],
        number=f"{customer['invoice_prefix']}-{customer['next_invoice_sequence']:04}",
        status="open",
    )
    customer["next_invoice_sequence"] += 1
    _date(books, invoice)
    renew_links(books, invoice)
    payment = objects.new_payment(books, invoice, amount=invoice["amount_due"], payment_type="payment_intent")
    books.add(payment | {"is_default": True})
    books.private[invoice["id"]]["payments"].append(payment["id"])
    books.emit("invoice.finalized", invoice)


def renew_links(books: Books, invoice: Object) -> None:
    """A new hosted page and PDF; the earlier links have expired."""
    token = books.new_id("test_")
    books.tokens[token] = invoice["id"]
    books.private[invoice["id"]]["token"] = token
    books.link(invoice, token)


def rounded(amount: Decimal) -> int:
    """The nearest minor unit, half up."""
    return int(amount.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def _apply(invoice: Object, given: Object) -> None:
    for name, value in given.items():
        if name in {"automatic_tax", "payment_settings"}:
            invoice[name].update(_plain(value))
        elif name in invoice:
            invoice[name] = value


def _plain(value: Any) -> Any:
    booleans = {"true": True, "false": False}
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return booleans.get(value, value) if isinstance(value, str) else value


def _date(books: Books, invoice: Object) -> None:
    now, days = books.now(), books.private[invoice["id"]]["days_until_due"]
    invoice["effective_at"] = invoice["status_transitions"]["finalized_at"] = now
    if days is not None:
        invoice["due_date"] = now + days * _SECONDS_PER_DAY


def _tax(books: Books, *, amount: int, taxable: int) -> Object:
    return {
        "amount": amount,
        "tax_behavior": "exclusive",
        "tax_rate_details": {"tax_rate": books.new_id("txr_")},
        "taxability_reason": "standard_rated",
        "taxable_amount": taxable,
        "type": "tax_rate_details",
    }


def _require_currency(currency: str) -> None:
    if not (currency.isascii() and currency.isalpha() and currency.islower() and len(currency) == len("usd")):
        raise Refusal(f"Invalid currency: {currency}", param="currency")
