"""How an open invoice ends, and what comes after: paid, void, uncollectible, refunded, disputed, credited."""

from http import HTTPStatus

from server.sandbox.stripe import invoicing, objects, receipts
from server.sandbox.stripe.books import Books, Object
from server.sandbox.stripe.refusal import Refusal, not_allowed

_PAYABLE = {"open", "uncollectible"}
_NOT_PAYABLE = {
    "draft": "Draft invoices can't be paid.",
    "paid": "Invoice is already paid",
    "void": "Voided invoices cannot be paid.",
}


def finalize(books: Books, invoice: Object) -> Object:
    """Make a draft payable; when nothing is due, it is paid at once with `amount_paid` 0."""
    invoicing.open_draft(books, invoice)
    settle_if_nothing_due(books, invoice)
    return invoice


def settle_if_nothing_due(books: Books, invoice: Object) -> None:
    """An open invoice with nothing left to pay is paid, with or without money."""
    if invoice["status"] in _PAYABLE and invoice["amount_remaining"] == 0:
        invoice["status"] = "paid"
        invoice["attempted"] = True
        invoice["status_transitions"]["paid_at"] = books.now()
        _cancel_open_payments(books, invoice)
        books.emit("invoice.paid", invoice)
        books.emit("invoice.payment_succeeded", invoice)


def receive(books: Books, invoice: Object, *, amount: int | None = None, out_of_band: bool = False) -> Object:
    """Money arrives: all that remains, or `amount` minor units, which may be less (stays open) or more (overpaid).

    Out of band means that a person said so in the dashboard: no charge exists, only a payment record.
    """
    if invoice["status"] not in _PAYABLE:
        raise not_allowed(_NOT_PAYABLE[invoice["status"]])
    arrived = invoice["amount_remaining"] if amount is None else amount
    applied = min(arrived, invoice["amount_remaining"])
    _record_payment(books, invoice, amount=applied, arrived=arrived, out_of_band=out_of_band)
    books.private[invoice["id"]]["payment_pending"] = False
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    invoice["amount_paid"] += applied
    invoice["amount_remaining"] -= applied
    settle_if_nothing_due(books, invoice)
    if arrived > applied:
        overpay(books, invoice, amount=arrived - applied)
    return invoice


def overpay(books: Books, invoice: Object, *, amount: int) -> None:
    """More money than the invoice asked for: it becomes credit of the customer."""
    invoice["amount_overpaid"] += amount
    books.find("customer", invoice["customer"])["balance"] -= amount
    books.emit("invoice.overpaid", invoice)


def fail_payment(books: Books, invoice: Object) -> None:
    """A payment was tried and refused; the invoice stays open."""
    books.private[invoice["id"]]["payment_pending"] = False
    invoice["attempted"] = True
    invoice["attempt_count"] += 1
    books.emit("invoice.payment_failed", invoice)


def pay_with(books: Books, invoice: Object, *, payment_method: str | None) -> Object:
    """The API's pay: any payment method works but `pm_card_chargeDeclined`; without one nothing can be charged."""
    if payment_method is None:
        raise not_allowed("This customer has no default payment method.", code="resource_missing")
    if payment_method == "pm_card_chargeDeclined":
        fail_payment(books, invoice)
        status = HTTPStatus.PAYMENT_REQUIRED
        raise Refusal("Your card was declined.", status=status, kind="card_error", code="card_declined", stored=True)
    return receive(books, invoice)


def void(books: Books, invoice: Object) -> Object:
    """Nobody can pay it any more, and the balance that it used up goes back to the customer.

    Refused while a payment is pending. Which code Stripe then answers could not be checked without an account.
    """
    if invoice["status"] not in _PAYABLE:
        raise not_allowed(f"You can only void an open or uncollectible invoice; this one is {invoice['status']}.")
    if books.private[invoice["id"]]["payment_pending"]:
        message = "This invoice can't be voided while a payment for it is processing."
        raise not_allowed(message, code="payment_intent_unexpected_state")
    books.find("customer", invoice["customer"])["balance"] += invoice["starting_balance"] - invoice["ending_balance"]
    invoice["status"] = "void"
    invoice["status_transitions"]["voided_at"] = books.now()
    _cancel_open_payments(books, invoice)
    books.emit("invoice.voided", invoice)
    return invoice


def mark_uncollectible(books: Books, invoice: Object) -> Object:
    """The money is given up; it may still be paid or voided."""
    if invoice["status"] != "open":
        raise not_allowed(f"You can only mark an open invoice as uncollectible; this one is {invoice['status']}.")
    invoice["status"] = "uncollectible"
    invoice["status_transitions"]["marked_uncollectible_at"] = books.now()
    books.emit("invoice.marked_uncollectible", invoice)
    return invoice


def delete_draft(books: Books, invoice: Object) -> Object:
    """A draft is gone as if it never was."""
    if invoice["status"] != "draft":
        raise not_allowed("You can only delete draft invoices.")
    del books.objects["invoice"][invoice["id"]]
    books.emit("invoice.deleted", invoice)
    return {"id": invoice["id"], "object": "invoice", "deleted": True}


def credit(books: Books, invoice: Object, *, amount: int | None = None) -> Object:
    """A credit note: on an open invoice it lowers what is due (to nothing: paid without money), on a paid one after."""
    before_payment = invoice["status"] in _PAYABLE
    amount = (invoice["amount_remaining"] if before_payment else invoice["total"]) if amount is None else amount
    note = books.add(receipts.new_credit_note(books, invoice, amount=amount, before_payment=before_payment))
    if before_payment:
        invoice["pre_payment_credit_notes_amount"] += amount
        invoice["amount_due"] -= amount
        invoice["amount_remaining"] -= amount
    else:
        invoice["post_payment_credit_notes_amount"] += amount
    books.emit("credit_note.created", note)
    settle_if_nothing_due(books, invoice)
    return note


def refund(books: Books, invoice: Object, *, amount: int | None = None) -> Object:
    """Money goes back to whoever paid: the whole charge, or `amount` minor units."""
    charge = charge_of(books, invoice)
    amount = charge["amount"] - charge["amount_refunded"] if amount is None else amount
    given_back = books.add(receipts.new_refund(books, charge, amount=amount))
    previous = {"amount_refunded": charge["amount_refunded"]}
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] >= charge["amount"]
    books.emit("charge.refunded", charge, previous=previous)
    return given_back


def dispute(books: Books, invoice: Object) -> Object:
    """The payer's bank takes the money back until the dispute is closed."""
    charge = charge_of(books, invoice)
    charge["disputed"] = True
    opened = books.add(receipts.new_dispute(books, charge))
    books.emit("charge.dispute.created", opened)
    return opened


def close_dispute(books: Books, invoice: Object, *, outcome: str = "lost") -> Object:
    """The bank has decided: `won` or `lost`, seen from the merchant."""
    charge = charge_of(books, invoice)
    for opened in books.objects["dispute"].values():
        if opened["charge"] == charge["id"] and opened["status"] == "needs_response":
            opened["status"] = outcome
            books.emit("charge.dispute.closed", opened)
            return opened
    raise not_allowed("This invoice's charge has no open dispute.")


def charge_of(books: Books, invoice: Object) -> Object:
    """The newest charge for an invoice; refused when no money came through Stripe."""
    intents = {payment["payment"].get("payment_intent") for payment in payments_of(books, invoice)} - {None}
    for charge in reversed(books.objects["charge"].values()):
        if charge["payment_intent"] in intents:
            return charge
    raise not_allowed("This invoice has no charge.")


def payments_of(books: Books, invoice: Object) -> list[Object]:
    """Every payment of an invoice, oldest first."""
    return [books.find("invoice_payment", identifier) for identifier in books.private[invoice["id"]]["payments"]]


def _record_payment(books: Books, invoice: Object, *, amount: int, arrived: int, out_of_band: bool) -> None:
    default = next((payment for payment in payments_of(books, invoice) if payment["status"] == "open"), None)
    whole = amount == invoice["amount_remaining"]
    if default and whole and not out_of_band:
        payment = default
    else:
        payment_type = "payment_record" if out_of_band else "payment_intent"
        payment = books.add(objects.new_payment(books, invoice, amount=amount, payment_type=payment_type))
        books.private[invoice["id"]]["payments"].append(payment["id"])
        if default:
            default["amount_requested"] -= amount
    payment.update(amount_paid=amount, status="paid")
    payment["status_transitions"]["paid_at"] = books.now()
    if not out_of_band:
        intent = payment["payment"]["payment_intent"]
        charge = receipts.new_charge(books, invoice, amount=arrived, payment_intent=intent)
        books.emit("charge.succeeded", books.add(charge))
    books.emit("invoice_payment.paid", payment)


def _cancel_open_payments(books: Books, invoice: Object) -> None:
    for payment in payments_of(books, invoice):
        if payment["status"] == "open":
            payment["status"] = "canceled"
            payment["status_transitions"]["canceled_at"] = books.now()
