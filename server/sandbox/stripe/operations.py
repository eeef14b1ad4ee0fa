"""The API calls that the stand-in supports: their parameters, and what each does to the account."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from server.sandbox.stripe import balances, cards, invoices, objects, webhooks
from server.sandbox.stripe.account import Object, StripeAccount
from server.sandbox.stripe.parameters import (
    Schema,
    boolean,
    choice,
    choice_of_readers,
    decimal,
    integer,
    metadata,
    nested,
    string,
    strings,
    time_filter,
    unset,
)
from server.sandbox.stripe.responses import is_within, list_response, object_response

Run = Callable[[StripeAccount, str, Object], Object]

_EXPAND: Schema = {"expand": strings}
_PAGE: Schema = {"limit": integer, "starting_after": string, "ending_before": string, **_EXPAND}

_COLLECTION = choice("charge_automatically", "send_invoice")
_STATUS = choice("draft", "open", "paid", "uncollectible", "void")

_CUSTOMER: Schema = {
    "address": nested, "balance": integer, "description": string, "email": string, "metadata": metadata,
    "name": string, "phone": string, "preferred_locales": strings,
}  # fmt: skip
_INVOICE: Schema = {
    "auto_advance": boolean, "automatic_tax": nested, "collection_method": _COLLECTION, "custom_fields": nested,
    "days_until_due": integer, "description": string, "due_date": integer, "footer": string, "metadata": metadata,
    "payment_settings": nested,
}  # fmt: skip
_NEW_INVOICE: Schema = {
    **_INVOICE, "currency": string, "customer": string, "pending_invoice_items_behavior": choice("exclude"),
    "discounts": choice_of_readers(unset, nested),
}  # fmt: skip
_NEW_ITEM: Schema = {
    "amount": integer, "currency": string, "customer": string, "description": string, "invoice": string,
    "metadata": metadata, "quantity": integer, "tax_behavior": choice("exclusive", "inclusive"), "tax_rates": strings,
    "unit_amount_decimal": decimal,
}  # fmt: skip
_NEW_SESSION: Schema = {
    "cancel_url": string, "customer": string, "metadata": metadata, "mode": choice("setup"),
    "allowed_payment_method_types": strings, "setup_intent_data": nested, "success_url": string, **_EXPAND,
}  # fmt: skip
_ENDPOINT: Schema = {"description": string, "enabled_events": strings, "metadata": metadata, "url": string}


@dataclass(frozen=True, slots=True)
class Operation:
    """One API call. `sdk_parameters` names the SDK's parameter class, against which a test checks the schema."""

    method: str
    path: str
    sdk_parameters: str
    schema: Schema
    run: Run
    required: tuple[str, ...] = ()
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(self.path.replace("{id}", "([^/]+)")))


def find_operation(method: str, path: str) -> tuple[Operation, str] | None:
    """The operation and the last id in its path (empty when it has none)."""
    for operation in OPERATIONS:
        matched = operation.pattern.fullmatch(path) if operation.method == method else None
        if matched:
            return operation, (matched.groups() or ("",))[-1]
    return None


def _on_object(kind: str, act: Callable[[StripeAccount, Object, Object], Object]) -> Run:
    def run(account: StripeAccount, identifier: str, given: Object) -> Object:
        expand = given.pop("expand", [])
        return object_response(account, act(account, account.find(kind, identifier), given), expand)

    return run


def _creation(act: Callable[[StripeAccount, Object], Object]) -> Run:
    def run(account: StripeAccount, _identifier: str, given: Object) -> Object:
        expand = given.pop("expand", [])
        return object_response(account, act(account, given), expand)

    return run


def _read(_account: StripeAccount, resource: Object, _given: Object) -> Object:
    return resource


def _pay(account: StripeAccount, invoice: Object, given: Object) -> Object:
    if given.get("paid_out_of_band"):
        return invoices.receive_payment(account, invoice, out_of_band=True)
    return invoices.pay(account, invoice, payment_method=given.get("payment_method"))


def _list(kind: str, filters: Mapping[str, Callable[[StripeAccount, Object, object], bool]]) -> Run:
    def run(account: StripeAccount, _identifier: str, given: Object) -> Object:
        asked = [(filters[name], given[name]) for name in given if name in filters]
        resources = [
            resource for resource in account.objects[kind].values() if all(f(account, resource, v) for f, v in asked)
        ]
        return list_response(account, resources, given, url=f"/v1/{kind}s")

    return run


def _list_of(kind: str, find: Callable[[StripeAccount, Object], list[Object]]) -> Run:
    def run(account: StripeAccount, identifier: str, given: Object) -> Object:
        found = find(account, account.find("customer", identifier))
        return list_response(account, found, given, url=f"/v1/customers/{identifier}/{kind}")

    return run


def _equal(name: str) -> Callable[[StripeAccount, Object, object], bool]:
    return lambda _account, resource, value: bool(resource[name] == value)


def _is_created_within(_account: StripeAccount, resource: Object, limits: object) -> bool:
    return isinstance(limits, dict) and is_within(resource["created"], limits)


def _has_type(_account: StripeAccount, event: Object, wanted: object) -> bool:
    patterns = wanted if isinstance(wanted, list) else [str(wanted)]
    return any(fnmatchcase(event["type"], pattern) for pattern in patterns)


def _is_delivered(account: StripeAccount, event: Object, succeeded: object) -> bool:
    return (event["id"] not in account.undelivered) == succeeded


def _has_payment(_account: StripeAccount, payment: Object, wanted: object) -> bool:
    return isinstance(wanted, dict) and all(payment["payment"].get(name) == value for name, value in wanted.items())


def _get(kind: str, path: str, sdk_parameters: str) -> Operation:
    return Operation("GET", path, sdk_parameters, _EXPAND, _on_object(kind, _read))


def _invoice_action(
    verb: str, sdk_parameters: str, schema: Schema, act: Callable[[StripeAccount, Object], Object]
) -> Operation:
    run = _on_object("invoice", lambda account, invoice, _given: act(account, invoice))
    return Operation("POST", f"/v1/invoices/{{id}}/{verb}", sdk_parameters, schema, run)


_CREATED_FILTER = {"created": _is_created_within}
OPERATIONS = (
    Operation("GET", "/v1/account", "", _EXPAND, lambda account, _identifier, _given: objects.account_object(account)),
    Operation("POST", "/v1/customers", "CustomerCreateParams", {**_CUSTOMER, **_EXPAND},
              _creation(invoices.create_customer)),
    Operation("GET", "/v1/customers", "CustomerListParams", {**_PAGE, "created": time_filter, "email": string},
              _list("customer", {**_CREATED_FILTER, "email": _equal("email")})),
    _get("customer", "/v1/customers/{id}", "CustomerRetrieveParams"),
    Operation("POST", "/v1/customers/{id}", "CustomerUpdateParams", {**_CUSTOMER, **_EXPAND},
              _on_object("customer", invoices.update_fields)),
    Operation("DELETE", "/v1/customers/{id}", "CustomerDeleteParams", {},
              _on_object("customer", balances.delete_customer)),
    Operation("GET", "/v1/customers/{id}/balance_transactions", "CustomerListBalanceTransactionsParams", _PAGE,
              _list_of("balance_transactions", balances.transactions_of)),
    Operation("GET", "/v1/customers/{id}/tax_ids", "CustomerListTaxIdsParams", _PAGE,
              _list_of("tax_ids", balances.tax_ids_of)),
    Operation("POST", "/v1/customers/{id}/tax_ids", "CustomerCreateTaxIdParams",
              {"type": string, "value": string, **_EXPAND}, _on_object("customer", balances.create_tax_id),
              required=("type", "value")),
    Operation("DELETE", "/v1/customers/{id}/tax_ids/{id}", "CustomerDeleteTaxIdParams", {},
              _on_object("tax_id", balances.delete_tax_id)),
    Operation("POST", "/v1/tax_rates", "TaxRateCreateParams",
              {"country": string, "display_name": string, "inclusive": boolean, "percentage": decimal, **_EXPAND},
              _creation(balances.create_tax_rate), required=("display_name", "inclusive", "percentage")),
    _get("tax_rate", "/v1/tax_rates/{id}", "TaxRateRetrieveParams"),
    Operation("POST", "/v1/invoices", "InvoiceCreateParams", {**_NEW_INVOICE, **_EXPAND},
              _creation(invoices.create_invoice), required=("customer",)),
    Operation("GET", "/v1/invoices", "InvoiceListParams",
              {**_PAGE, "created": time_filter, "customer": string, "status": _STATUS,
               "collection_method": _COLLECTION},
              _list("invoice", {**_CREATED_FILTER, "customer": _equal("customer"), "status": _equal("status"),
                                "collection_method": _equal("collection_method")})),
    _get("invoice", "/v1/invoices/{id}", "InvoiceRetrieveParams"),
    Operation("POST", "/v1/invoices/{id}", "InvoiceUpdateParams", {**_INVOICE, **_EXPAND},
              _on_object("invoice", invoices.update_invoice)),
    Operation("DELETE", "/v1/invoices/{id}", "InvoiceDeleteParams", {},
              _on_object("invoice", lambda account, invoice, _given: invoices.delete_draft(account, invoice))),
    _invoice_action("finalize", "InvoiceFinalizeInvoiceParams", {"auto_advance": boolean, **_EXPAND},
                    invoices.finalize),
    _invoice_action("void", "InvoiceVoidInvoiceParams", _EXPAND, invoices.void),
    _invoice_action("mark_uncollectible", "InvoiceMarkUncollectibleParams", _EXPAND, invoices.mark_uncollectible),
    Operation("POST", "/v1/invoices/{id}/pay", "InvoicePayParams",
              {"paid_out_of_band": boolean, "payment_method": string, "off_session": boolean, **_EXPAND},
              _on_object("invoice", _pay)),
    Operation("POST", "/v1/checkout/sessions", "checkout.SessionCreateParams", _NEW_SESSION,
              _creation(cards.create_session), required=("customer", "mode", "success_url")),
    _get("checkout.session", "/v1/checkout/sessions/{id}", "checkout.SessionRetrieveParams"),
    Operation("POST", "/v1/checkout/sessions/{id}/expire", "checkout.SessionExpireParams", _EXPAND,
              _on_object("checkout.session", cards.expire_session)),
    _get("setup_intent", "/v1/setup_intents/{id}", "SetupIntentRetrieveParams"),
    _get("payment_method", "/v1/payment_methods/{id}", "PaymentMethodRetrieveParams"),
    Operation("POST", "/v1/payment_methods/{id}/detach", "PaymentMethodDetachParams", _EXPAND,
              _on_object("payment_method", cards.detach)),
    Operation("POST", "/v1/invoiceitems", "InvoiceItemCreateParams", {**_NEW_ITEM, **_EXPAND},
              _creation(invoices.add_item), required=("invoice",)),
    Operation("GET", "/v1/invoiceitems", "InvoiceItemListParams", {**_PAGE, "invoice": string, "customer": string},
              _list("invoiceitem", {"invoice": _equal("invoice"), "customer": _equal("customer")})),
    _get("invoiceitem", "/v1/invoiceitems/{id}", "InvoiceItemRetrieveParams"),
    Operation("GET", "/v1/invoice_payments", "InvoicePaymentListParams",
              {**_PAGE, "invoice": string, "status": string, "payment": nested},
              _list("invoice_payment",
                    {"invoice": _equal("invoice"), "status": _equal("status"), "payment": _has_payment})),
    _get("invoice_payment", "/v1/invoice_payments/{id}", "InvoicePaymentRetrieveParams"),
    _get("charge", "/v1/charges/{id}", "ChargeRetrieveParams"),
    Operation("GET", "/v1/disputes", "DisputeListParams", {**_PAGE, "charge": string, "payment_intent": string},
              _list("dispute", {"charge": _equal("charge"), "payment_intent": _equal("payment_intent")})),
    _get("dispute", "/v1/disputes/{id}", "DisputeRetrieveParams"),
    Operation("GET", "/v1/credit_notes", "CreditNoteListParams", {**_PAGE, "invoice": string},
              _list("credit_note", {"invoice": _equal("invoice")})),
    _get("credit_note", "/v1/credit_notes/{id}", "CreditNoteRetrieveParams"),
    Operation("GET", "/v1/events", "EventListParams",
              {**_PAGE, "created": time_filter, "type": string, "types": strings, "delivery_success": boolean},
              _list("event", {**_CREATED_FILTER, "type": _has_type, "types": _has_type,
                              "delivery_success": _is_delivered})),
    _get("event", "/v1/events/{id}", "EventRetrieveParams"),
    Operation("POST", "/v1/webhook_endpoints", "WebhookEndpointCreateParams",
              {**_ENDPOINT, "api_version": string, **_EXPAND}, _creation(webhooks.create_endpoint),
              required=("url", "enabled_events")),
    Operation("GET", "/v1/webhook_endpoints", "WebhookEndpointListParams", _PAGE, _list("webhook_endpoint", {})),
    _get("webhook_endpoint", "/v1/webhook_endpoints/{id}", "WebhookEndpointRetrieveParams"),
    Operation("POST", "/v1/webhook_endpoints/{id}", "WebhookEndpointUpdateParams",
              {**_ENDPOINT, "disabled": boolean, **_EXPAND}, _on_object("webhook_endpoint", webhooks.update_endpoint)),
    Operation("DELETE", "/v1/webhook_endpoints/{id}", "WebhookEndpointDeleteParams", {},
              _on_object("webhook_endpoint", webhooks.delete_endpoint)),
)  # fmt: skip
"""Every supported call."""
