"""The API calls that the stand-in knows: which parameters each takes, and what it does to the books."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from server.sandbox.stripe import invoicing, receipts, settling
from server.sandbox.stripe.books import Books, Object
from server.sandbox.stripe.parameters import Schema, choice, decimal, flag, metadata, nested, span, text, texts, whole
from server.sandbox.stripe.reading import page, view, within

Run = Callable[[Books, str, Object], Object]

_EXPAND: Schema = {"expand": texts}
_PAGE: Schema = {"limit": whole, "starting_after": text, "ending_before": text, **_EXPAND}

_COLLECTION = choice("charge_automatically", "send_invoice")
_STATUS = choice("draft", "open", "paid", "uncollectible", "void")

_CUSTOMER: Schema = {
    "address": nested, "balance": whole, "description": text, "email": text, "metadata": metadata, "name": text,
    "phone": text, "preferred_locales": texts,
}  # fmt: skip
_INVOICE: Schema = {
    "auto_advance": flag, "automatic_tax": nested, "collection_method": _COLLECTION, "custom_fields": nested,
    "days_until_due": whole, "description": text, "due_date": whole, "footer": text, "metadata": metadata,
    "payment_settings": nested,
}  # fmt: skip
_NEW_INVOICE: Schema = {
    **_INVOICE, "currency": text, "customer": text, "pending_invoice_items_behavior": choice("exclude"),
}  # fmt: skip
_NEW_ITEM: Schema = {
    "amount": whole, "currency": text, "customer": text, "description": text, "invoice": text, "metadata": metadata,
    "quantity": whole, "unit_amount_decimal": decimal,
}  # fmt: skip
_ENDPOINT: Schema = {"description": text, "enabled_events": texts, "metadata": metadata, "url": text}


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
    """The operation and the id in its path (empty when it has none)."""
    for operation in OPERATIONS:
        matched = operation.pattern.fullmatch(path) if operation.method == method else None
        if matched:
            return operation, (matched.groups() or ("",))[0]
    return None


def _on(kind: str, act: Callable[[Books, Object, Object], Object]) -> Run:
    def run(books: Books, identifier: str, given: Object) -> Object:
        expand = given.pop("expand", [])
        return view(books, act(books, books.find(kind, identifier), given), expand)

    return run


def _new(act: Callable[[Books, Object], Object]) -> Run:
    def run(books: Books, _identifier: str, given: Object) -> Object:
        expand = given.pop("expand", [])
        return view(books, act(books, given), expand)

    return run


def _read(_books: Books, thing: Object, _given: Object) -> Object:
    return thing


def _pay(books: Books, invoice: Object, given: Object) -> Object:
    if given.get("paid_out_of_band"):
        return settling.receive(books, invoice, out_of_band=True)
    return settling.pay_with(books, invoice, payment_method=given.get("payment_method"))


def _list(kind: str, filters: Mapping[str, Callable[[Books, Object, object], bool]]) -> Run:
    def run(books: Books, _identifier: str, given: Object) -> Object:
        asked = [(filters[name], given[name]) for name in given if name in filters]
        things = [thing for thing in books.objects[kind].values() if all(f(books, thing, v) for f, v in asked)]
        return page(books, things, given, url=f"/v1/{kind}s")

    return run


def _equal(name: str) -> Callable[[Books, Object, object], bool]:
    return lambda _books, thing, value: bool(thing[name] == value)


def _created(_books: Books, thing: Object, limits: object) -> bool:
    return isinstance(limits, dict) and within(thing["created"], limits)


def _of_types(_books: Books, event: Object, wanted: object) -> bool:
    patterns = wanted if isinstance(wanted, list) else [str(wanted)]
    return any(fnmatchcase(event["type"], pattern) for pattern in patterns)


def _delivery(books: Books, event: Object, succeeded: object) -> bool:
    return (event["id"] not in books.undelivered) == succeeded


def _has_payment(_books: Books, payment: Object, wanted: object) -> bool:
    return isinstance(wanted, dict) and all(payment["payment"].get(name) == value for name, value in wanted.items())


def _create_endpoint(books: Books, given: Object) -> Object:
    endpoint = receipts.new_endpoint(books, url=given["url"], events=given["enabled_events"])
    books.add(endpoint | {name: given[name] for name in ("api_version", "description", "metadata") if name in given})
    secret = books.new_id("whsec_")
    books.secrets[endpoint["id"]] = [secret]
    return books.find("webhook_endpoint", endpoint["id"]) | {"secret": secret}


def _update_endpoint(books: Books, endpoint: Object, given: Object) -> Object:
    if "disabled" in given:
        endpoint["status"] = "disabled" if given.pop("disabled") else "enabled"
    return invoicing.change(books, endpoint, given)


def _delete_endpoint(books: Books, endpoint: Object, _given: Object) -> Object:
    del books.objects["webhook_endpoint"][endpoint["id"]]
    return {"id": endpoint["id"], "object": "webhook_endpoint", "deleted": True}


def _get(kind: str, path: str, sdk_parameters: str) -> Operation:
    return Operation("GET", path, sdk_parameters, _EXPAND, _on(kind, _read))


def _act(verb: str, sdk_parameters: str, schema: Schema, act: Callable[[Books, Object], Object]) -> Operation:
    run = _on("invoice", lambda books, invoice, _given: act(books, invoice))
    return Operation("POST", f"/v1/invoices/{{id}}/{verb}", sdk_parameters, schema, run)


_DATED = {"created": _created}
OPERATIONS = (
    Operation("GET", "/v1/account", "", _EXPAND, lambda books, _identifier, _given: receipts.account(books)),
    Operation("POST", "/v1/customers", "CustomerCreateParams", {**_CUSTOMER, **_EXPAND},
              _new(invoicing.create_customer)),
    Operation("GET", "/v1/customers", "CustomerListParams", {**_PAGE, "created": span, "email": text},
              _list("customer", {**_DATED, "email": _equal("email")})),
    _get("customer", "/v1/customers/{id}", "CustomerRetrieveParams"),
    Operation("POST", "/v1/customers/{id}", "CustomerUpdateParams", {**_CUSTOMER, **_EXPAND},
              _on("customer", invoicing.change)),
    Operation("POST", "/v1/invoices", "InvoiceCreateParams", {**_NEW_INVOICE, **_EXPAND},
              _new(invoicing.create_invoice), required=("customer",)),
    Operation("GET", "/v1/invoices", "InvoiceListParams",
              {**_PAGE, "created": span, "customer": text, "status": _STATUS, "collection_method": _COLLECTION},
              _list("invoice", {**_DATED, "customer": _equal("customer"), "status": _equal("status"),
                                "collection_method": _equal("collection_method")})),
    _get("invoice", "/v1/invoices/{id}", "InvoiceRetrieveParams"),
    Operation("POST", "/v1/invoices/{id}", "InvoiceUpdateParams", {**_INVOICE, **_EXPAND},
              _on("invoice", invoicing.update_invoice)),
    Operation("DELETE", "/v1/invoices/{id}", "InvoiceDeleteParams", {},
              _on("invoice", lambda books, invoice, _given: settling.delete_draft(books, invoice))),
    _act("finalize", "InvoiceFinalizeInvoiceParams", {"auto_advance": flag, **_EXPAND}, settling.finalize),
    _act("void", "InvoiceVoidInvoiceParams", _EXPAND, settling.void),
    _act("mark_uncollectible", "InvoiceMarkUncollectibleParams", _EXPAND, settling.mark_uncollectible),
    Operation("POST", "/v1/invoices/{id}/pay", "InvoicePayParams",
              {"paid_out_of_band": flag, "payment_method": text, **_EXPAND}, _on("invoice", _pay)),
    Operation("POST", "/v1/invoiceitems", "InvoiceItemCreateParams", {**_NEW_ITEM, **_EXPAND}, _new(invoicing.add_item),
              required=("invoice",)),
    Operation("GET", "/v1/invoiceitems", "InvoiceItemListParams", {**_PAGE, "invoice": text, "customer": text},
              _list("invoiceitem", {"invoice": _equal("invoice"), "customer": _equal("customer")})),
    _get("invoiceitem", "/v1/invoiceitems/{id}", "InvoiceItemRetrieveParams"),
    Operation("GET", "/v1/invoice_payments", "InvoicePaymentListParams",
              {**_PAGE, "invoice": text, "status": text, "payment": nested},
              _list("invoice_payment",
                    {"invoice": _equal("invoice"), "status": _equal("status"), "payment": _has_payment})),
    _get("invoice_payment", "/v1/invoice_payments/{id}", "InvoicePaymentRetrieveParams"),
    _get("charge", "/v1/charges/{id}", "ChargeRetrieveParams"),
    _get("dispute", "/v1/disputes/{id}", "DisputeRetrieveParams"),
    Operation("GET", "/v1/credit_notes", "CreditNoteListParams", {**_PAGE, "invoice": text},
              _list("credit_note", {"invoice": _equal("invoice")})),
    _get("credit_note", "/v1/credit_notes/{id}", "CreditNoteRetrieveParams"),
    Operation("GET", "/v1/events", "EventListParams",
              {**_PAGE, "created": span, "type": text, "types": texts, "delivery_success": flag},
              _list("event", {**_DATED, "type": _of_types, "types": _of_types, "delivery_success": _delivery})),
    _get("event", "/v1/events/{id}", "EventRetrieveParams"),
    Operation("POST", "/v1/webhook_endpoints", "WebhookEndpointCreateParams",
              {**_ENDPOINT, "api_version": text, **_EXPAND}, _new(_create_endpoint),
              required=("url", "enabled_events")),
    Operation("GET", "/v1/webhook_endpoints", "WebhookEndpointListParams", _PAGE, _list("webhook_endpoint", {})),
    _get("webhook_endpoint", "/v1/webhook_endpoints/{id}", "WebhookEndpointRetrieveParams"),
    Operation("POST", "/v1/webhook_endpoints/{id}", "WebhookEndpointUpdateParams",
              {**_ENDPOINT, "disabled": flag, **_EXPAND}, _on("webhook_endpoint", _update_endpoint)),
    Operation("DELETE", "/v1/webhook_endpoints/{id}", "WebhookEndpointDeleteParams", {},
              _on("webhook_endpoint", _delete_endpoint)),
)  # fmt: skip
"""Every call, as `method path`."""
