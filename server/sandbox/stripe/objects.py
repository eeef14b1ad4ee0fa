"""Each Stripe object as it is when new, in the shape of `account.API_VERSION`."""

from decimal import Decimal

from server.sandbox.stripe.account import API_VERSION, Object, StripeAccount


def new_customer(account: StripeAccount) -> Object:
    """A customer without balance; its invoices are numbered under its own prefix."""
    identifier = account.new_id("cus_")
    return {
        "id": identifier,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": account.now(),
        "currency": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": identifier[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None, "default_payment_method": None, "footer": None, "rendering_options": None,
        },
        "livemode": account.settings["livemode"],
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }  # fmt: skip


def new_invoice(account: StripeAccount, customer: Object, *, currency: str) -> Object:
    """A draft without lines. `payments` and `amount_paid_off_stripe` are served only when expanded."""
    identifier, now = account.new_id("in_"), account.now()
    zeros = (
        "amount_due", "amount_overpaid", "amount_paid", "amount_remaining", "amount_shipping", "attempt_count",
        "post_payment_credit_notes_amount", "pre_payment_credit_notes_amount", "starting_balance", "subtotal", "total",
    )  # fmt: skip
    nulls = (
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
        **dict.fromkeys(nulls),
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
        "livemode": account.settings["livemode"],
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


def new_item(account: StripeAccount, invoice: Object, *, amount: int, unit_amount: Decimal, quantity: int) -> Object:
    """One item on a draft invoice. Amounts are in minor units; the unit amount may be finer."""
    now = account.now()
    return {
        "id": account.new_id("ii_"),
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


def new_line(account: StripeAccount, item: Object) -> Object:
    """An item as a line of its invoice."""
    copied = ("amount", "currency", "description", "discountable", "invoice", "livemode", "period", "pricing")
    return {
        "id": account.new_id("il_"),
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


def new_payment(account: StripeAccount, invoice: Object, *, amount: int, payment_type: str) -> Object:
    """A payment asked for: open until money arrives. The type is `payment_intent` or `payment_record` (out of band)."""
    prefix = {"payment_intent": "pi_", "payment_record": "prec_"}[payment_type]
    return {
        "id": account.new_id("inpay_"),
        "object": "invoice_payment",
        "amount_paid": None,
        "amount_requested": amount,
        "created": account.now(),
        "currency": invoice["currency"],
        "invoice": invoice["id"],
        "is_default": False,
        "livemode": invoice["livemode"],
        "payment": {payment_type: account.new_id(prefix), "type": payment_type},
        "status": "open",
        "status_transitions": {"canceled_at": None, "paid_at": None},
    }


def new_charge(account: StripeAccount, invoice: Object, *, amount: int, payment_intent: str) -> Object:
    """A successful payment of an invoice. Since API version "basil" it names the payment intent, not the invoice."""
    return {
        "id": account.new_id("ch_"),
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": 0,
        "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
        "captured": True,
        "created": account.now(),
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


def new_refund(account: StripeAccount, charge: Object, *, amount: int) -> Object:
    """A refund of a charge."""
    return {
        "id": account.new_id("re_"),
        "object": "refund",
        "amount": amount,
        "charge": charge["id"],
        "created": account.now(),
        "currency": charge["currency"],
        "metadata": {},
        "payment_intent": charge["payment_intent"],
        "reason": "requested_by_customer",
        "status": "succeeded",
    }


def new_dispute(account: StripeAccount, charge: Object, *, status: str) -> Object:
    """A dispute of a charge, opened by the customer's bank."""
    return {
        "id": account.new_id("du_"),
        "object": "dispute",
        "amount": charge["amount"],
        "balance_transactions": [],
        "charge": charge["id"],
        "created": account.now(),
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
        "status": status,
    }


def new_credit_note(account: StripeAccount, invoice: Object, *, amount: int, before_payment: bool) -> Object:
    """A reduction of an invoice, before it is paid or after."""
    identifier = account.new_id("cn_")
    return {
        "id": identifier,
        "object": "credit_note",
        "amount": amount,
        "amount_shipping": 0,
        "created": account.now(),
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice": invoice["id"],
        "lines": {"object": "list", "data": [], "has_more": False, "url": f"/v1/credit_notes/{identifier}/lines"},
        "livemode": invoice["livemode"],
        "metadata": {},
        "number": f"{invoice['number']}-CN-{identifier[-4:].upper()}",
        "pdf": f"{account.url}/credit_notes/{identifier}/pdf",
        "post_payment_amount": 0 if before_payment else amount,
        "pre_payment_amount": amount if before_payment else 0,
        "pretax_credit_amounts": [],
        "refunds": [],
        "status": "issued",
        "subtotal": amount,
        "total": amount,
        "type": "pre_payment" if before_payment else "post_payment",
    }


def new_endpoint(account: StripeAccount, *, url: str, events: list[str]) -> Object:
    """An endpoint that receives the given event types (`*` for all)."""
    return {
        "id": account.new_id("we_"),
        "object": "webhook_endpoint",
        "api_version": API_VERSION,
        "application": None,
        "created": account.now(),
        "description": None,
        "enabled_events": events,
        "livemode": account.settings["livemode"],
        "metadata": {},
        "status": "enabled",
        "url": url,
    }


def account_object(account: StripeAccount) -> Object:
    """The account that the API key belongs to."""
    return {
        "id": account.settings["account"],
        "object": "account",
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": "sandbox@pulsa.test",
        "payouts_enabled": True,
        "type": "standard",
    }


def new_balance_transaction(
    account: StripeAccount, customer: Object, *, amount: int, kind: str, currency: str
) -> Object:
    """A change of a customer's balance; a negative amount is a credit."""
    return {
        "id": account.new_id("cbtxn_"),
        "object": "customer_balance_transaction",
        "amount": amount,
        "checkout_session": None,
        "created": account.now(),
        "credit_note": None,
        "currency": currency,
        "customer": customer["id"],
        "customer_account": None,
        "description": None,
        "ending_balance": amount,
        "invoice": None,
        "livemode": customer["livemode"],
        "metadata": {},
        "type": kind,
    }


def new_discount(account: StripeAccount, customer: Object) -> Object:
    """A coupon that a customer has."""
    return {
        "id": account.new_id("di_"),
        "object": "discount",
        "checkout_session": None,
        "customer": customer["id"],
        "end": None,
        "invoice": None,
        "invoice_item": None,
        "promotion_code": None,
        "source": {"coupon": account.new_id("cpn_"), "type": "coupon"},
        "start": account.now(),
        "subscription": None,
        "subscription_item": None,
    }


def new_cash_balance(account: StripeAccount, customer: Object) -> Object:
    """A customer's cash: bank transfers that are applied to invoices by themselves."""
    return {
        "object": "cash_balance",
        "available": {},
        "customer": customer["id"],
        "livemode": account.settings["livemode"],
        "settings": {"reconciliation_mode": "automatic", "using_merchant_default": True},
    }


def new_session(account: StripeAccount, customer: Object, given: Object, *, setup_intent: str) -> Object:
    """A Checkout session in setup mode: a page on which the customer saves a card."""
    identifier = account.new_id("cs_test_")
    nulls = (
        "after_expiration", "allow_promotion_codes", "amount_subtotal", "amount_total", "billing_address_collection",
        "client_reference_id", "client_secret", "consent", "consent_collection", "currency", "customer_creation",
        "customer_details", "customer_email", "invoice", "invoice_creation", "locale", "payment_intent", "payment_link",
        "payment_method_collection", "shipping_address_collection", "shipping_cost", "submit_type", "subscription",
        "total_details",
    )  # fmt: skip
    return {
        "id": identifier,
        "object": "checkout.session",
        **dict.fromkeys(nulls),
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "cancel_url": given.get("cancel_url"),
        "created": account.now(),
        "custom_fields": [],
        "custom_text": {
            "after_submit": None, "shipping_address": None, "submit": None, "terms_of_service_acceptance": None,
        },
        "customer": customer["id"],
        "expires_at": account.now(),
        "livemode": account.settings["livemode"],
        "metadata": given.get("metadata", {}),
        "mode": given["mode"],
        "payment_method_options": {},
        "payment_method_types": given.get("allowed_payment_method_types", ["card"]),
        "payment_status": "no_payment_required",
        "setup_intent": setup_intent,
        "shipping_options": [],
        "status": "open",
        "success_url": given.get("success_url"),
        "url": f"{account.url}/c/{identifier}",
    }  # fmt: skip


def new_setup_intent(account: StripeAccount, customer: Object, *, metadata: Object) -> Object:
    """The saving of a card for charges without the customer, before it is done."""
    nulls = (
        "application", "cancellation_reason", "client_secret", "description", "flow_directions", "last_setup_error",
        "latest_attempt", "mandate", "next_action", "on_behalf_of", "payment_method", "single_use_mandate",
    )  # fmt: skip
    return {
        "id": account.new_id("seti_"),
        "object": "setup_intent",
        **dict.fromkeys(nulls),
        "created": account.now(),
        "customer": customer["id"],
        "livemode": account.settings["livemode"],
        "metadata": metadata,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "status": "requires_payment_method",
        "usage": "off_session",
    }


def new_payment_method(account: StripeAccount, customer: Object, *, last4: str) -> Object:
    """A card that a customer has saved."""
    return {
        "id": account.new_id("pm_"),
        "object": "payment_method",
        "allow_redisplay": "limited",
        "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
        "card": {
            "brand": "visa",
            "checks": None,
            "country": "US",
            "display_brand": "visa",
            "exp_month": 12,
            "exp_year": 2040,
            "fingerprint": None,
            "funding": "credit",
            "generated_from": None,
            "last4": last4,
            "networks": None,
            "regulated_status": "unregulated",
            "three_d_secure_usage": {"supported": True},
            "wallet": None,
        },
        "created": account.now(),
        "customer": customer["id"],
        "livemode": account.settings["livemode"],
        "metadata": {},
        "type": "card",
    }


def new_tax_id(account: StripeAccount, customer: Object, given: Object) -> Object:
    """A customer's tax id."""
    return {
        "id": account.new_id("txi_"),
        "object": "tax_id",
        "country": given["type"][:2].upper(),
        "created": account.now(),
        "customer": customer["id"],
        "livemode": account.settings["livemode"],
        "owner": {"type": "customer", "customer": customer["id"]},
        "type": given["type"],
        "value": given["value"],
        "verification": {"status": "unavailable", "verified_address": None, "verified_name": None},
    }


def new_tax_rate(account: StripeAccount, given: Object) -> Object:
    """A fixed tax rate."""
    return {
        "id": account.new_id("txr_"),
        "object": "tax_rate",
        "active": True,
        "country": given.get("country"),
        "created": account.now(),
        "description": None,
        "display_name": given["display_name"],
        "effective_percentage": float(given["percentage"]),
        "flat_amount": None,
        "inclusive": given["inclusive"],
        "jurisdiction": None,
        "jurisdiction_level": None,
        "livemode": account.settings["livemode"],
        "metadata": {},
        "percentage": float(given["percentage"]),
        "rate_type": "percentage",
        "state": None,
        "tax_type": None,
    }
