"""How each Stripe object looks when it is new, in the shape of `books.API_VERSION`."""

from decimal import Decimal

from server.sandbox.stripe.books import Books, Object


def new_customer(books: Books) -> Object:
    """A customer without balance; its invoices are numbered under its own prefix."""
    identifier = books.new_id("cus_")
    return {
        "id": identifier,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": books.now(),
        "currency": None,
        "delinquent": False,
        "description": None,
        "email": None,
        "invoice_prefix": identifier[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None, "default_payment_method": None, "footer": None, "rendering_options": None,
        },
        "livemode": books.settings["livemode"],
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }  # fmt: skip


def new_invoice(books: Books, customer: Object, *, currency: str) -> Object:
    """A draft without lines. `payments` and `amount_paid_off_stripe` are served only when expanded."""
    identifier, now = books.new_id("in_"), books.now()
    zeros = (
        "amount_due", "amount_overpaid", "amount_paid", "amount_remaining", "amount_shipping", "attempt_count",
        "post_payment_credit_notes_amount", "pre_payment_credit_notes_amount", "starting_balance", "subtotal", "total",
    )  # fmt: skip
    nothings = (
        "account_tax_ids", "application", "automatically_finalizes_at", "custom_fields", "customer_account",
        "customer_phone", "customer_shipping", "default_payment_method", "default_source", "description", "due_date",
        "effective_at", "ending_balance", "footer", "from_invoice", "hosted_invoice_url", "invoice_pdf",
        "last_finalization_error", "latest_revision", "next_payment_attempt", "number", "on_behalf_of", "parent",
        "receipt_number", "rendering", "shipping_cost", "shipping_details", "statement_descriptor", "test_clock",
        "webhooks_delivered_at",
    )  # fmt: skip
    return {
        "id": identifier,
        "object": "invoice",
        **dict.fromkeys(zeros, 0),
        **dict.fromkeys(nothings),
        "account_country": "US",
        "account_name": "Pulsa sandbox",
        "attempted": False,
        "auto_advance": False,
        "automatic_tax": {
            "disabled_reason": None, "enabled": False, "liability": None, "provider": None, "status": None,
        },
        "billing_reason": "manual",
        "collection_method": "charge_automatically",
        "created": now,
        "currency": currency,
        "customer": customer["id"],
        "customer_address": customer["address"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_tax_exempt": customer["tax_exempt"],
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "discounts": [],
        "issuer": {"type": "self"},
        "lines": {
            "object": "list", "data": [], "has_more": False, "total_count": 0,
            "url": f"/v1/invoices/{identifier}/lines",
        },
        "livemode": books.settings["livemode"],
        "metadata": {},
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_end": now,
        "period_start": now,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None, "marked_uncollectible_at": None, "paid_at": None, "voided_at": None,
        },
        "subtotal_excluding_tax": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
    }  # fmt: skip


def new_item(books: Books, invoice: Object, *, amount: int, unit_amount: Decimal, quantity: int) -> Object:
    """One item on a draft invoice. Amounts are in minor units; the unit amount may be finer."""
    now = books.now()
    return {
        "id": books.new_id("ii_"),
        "object": "invoiceitem",
        "amount": amount,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_account": None,
        "date": now,
        "description": None,
        "discountable": True,
        "discounts": [],
        "invoice": invoice["id"],
        "livemode": invoice["livemode"],
        "metadata": {},
        "net_amount": amount,
        "parent": None,
        "period": {"end": now, "start": now},
        "pricing": {"price_details": None, "type": "price_details", "unit_amount_decimal": f"{unit_amount:f}"},
        "proration": False,
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "tax_rates": [],
        "test_clock": None,
    }


def new_line(books: Books, item: Object) -> Object:
    """An item as a line of its invoice."""
    copied = ("amount", "currency", "description", "discountable", "invoice", "livemode", "period", "pricing")
    return {
        "id": books.new_id("il_"),
        "object": "line_item",
        **{name: item[name] for name in copied},
        "discount_amounts": [],
        "discounts": [],
        "metadata": dict(item["metadata"]),
        "parent": {
            "invoice_item_details": {
                "invoice_item": item["id"], "proration": False, "proration_details": None, "subscription": None,
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        "pretax_credit_amounts": [],
        "quantity": item["quantity"],
        "quantity_decimal": item["quantity_decimal"],
        "subscription": None,
        "subtotal": item["amount"],
        "taxes": [],
    }  # fmt: skip


def new_payment(books: Books, invoice: Object, *, amount: int, payment_type: str) -> Object:
    """A payment asked for: open until money arrives. The type is `payment_intent` or `payment_record` (out of band)."""
    prefix = {"payment_intent": "pi_", "payment_record": "prec_"}[payment_type]
    return {
        "id": books.new_id("inpay_"),
        "object": "invoice_payment",
        "amount_paid": None,
        "amount_requested": amount,
        "created": books.now(),
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": False,
        "livemode": invoice["livemode"],
        "payment": {payment_type: books.new_id(prefix), "type": payment_type},
        "status": "open",
        "status_transitions": {"canceled_at": None, "paid_at": None},
    }
