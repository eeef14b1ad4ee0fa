"""How the objects around a payment look when they are new: charge, refund, dispute, credit note; and the account."""

from server.sandbox.stripe.books import API_VERSION, Books, Object


def new_charge(books: Books, invoice: Object, *, amount: int, payment_intent: str) -> Object:
    """Money that arrived for an invoice. Since API version "basil" it names the payment intent, not the invoice."""
    return {
        "id": books.new_id("ch_"),
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": 0,
        "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
        "captured": True,
        "created": books.now(),
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "description": f"Payment for invoice {invoice['number']}",
        "disputed": False,
        "livemode": invoice["livemode"],
        "metadata": {},
        "paid": True,
        "payment_intent": payment_intent,
        "refunded": False,
        "status": "succeeded",
    }


def new_refund(books: Books, charge: Object, *, amount: int) -> Object:
    """Money given back."""
    return {
        "id": books.new_id("re_"),
        "object": "refund",
        "amount": amount,
        "charge": charge["id"],
        "created": books.now(),
        "currency": charge["currency"],
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": "requested_by_customer",
        "status": "succeeded",
    }


def new_dispute(books: Books, charge: Object) -> Object:
    """The customer's bank asks for the money back."""
    return {
        "id": books.new_id("du_"),
        "object": "dispute",
        "amount": charge["amount"],
        "balance_transactions": [],
        "charge": charge["id"],
        "created": books.now(),
        "currency": charge["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {},
        "evidence_details": {
            "due_by": None,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "is_charge_refundable": False,
        "livemode": charge["livemode"],
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": "fraudulent",
        "status": "needs_response",
    }


def new_credit_note(books: Books, invoice: Object, *, amount: int, before_payment: bool) -> Object:
    """A reduction of an invoice, before it is paid or after."""
    identifier = books.new_id("cn_")
    return {
        "id": identifier,
        "object": "credit_note",
        "amount": amount,
        "amount_shipping": 0,
        "created": books.now(),
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice": invoice["id"],
        "lines": {"object": "list", "data": [], "has_more": False, "url": f"/v1/credit_notes/{identifier}/lines"},
        "livemode": invoice["livemode"],
        "metadata": {},
        "number": f"{invoice['number']}-CN-{identifier[-4:].upper()}",
        "pdf": f"{books.url}/credit_notes/{identifier}/pdf",
        "post_payment_amount": 0 if before_payment else amount,
        "pre_payment_amount": amount if before_payment else 0,
        "pretax_credit_amounts": [],
        "refunds": [],
        "status": "issued",
        "subtotal": amount,
        "total": amount,
        "type": "pre_payment" if before_payment else "post_payment",
    }


def new_endpoint(books: Books, *, url: str, events: list[str]) -> Object:
    """An endpoint that is told of the given event types (`*` for all)."""
    return {
        "id": books.new_id("we_"),
        "object": "webhook_endpoint",
        "api_version": API_VERSION,
        "application": None,
        "created": books.now(),
        "description": None,
        "enabled_events": events,
        "livemode": books.settings["livemode"],
        "metadata": {},
        "status": "enabled",
        "url": url,
    }


def account(books: Books) -> Object:
    """The account that the API key belongs to."""
    return {
        "id": books.settings["account"],
        "object": "account",
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": "sandbox@pulsa.test",
        "payouts_enabled": True,
        "type": "standard",
    }
