"""Objects in responses: one with its expansions, or a page of a list, newest first."""

from collections.abc import Callable, Iterable

from server.sandbox.stripe import invoices
from server.sandbox.stripe.account import Object, StripeAccount
from server.sandbox.stripe.balances import balance_of, transactions_of
from server.sandbox.stripe.errors import ApiError, not_found

_PAGE_SIZE = 10
_LARGEST_PAGE = 100


def object_response(account: StripeAccount, resource: Object, expand: Iterable[str] = ()) -> Object:
    """A copy of the object with the expansions that the call asked for."""
    hidden = {"cash_balance"} if resource["object"] == "customer" else set()
    served = {name: value for name, value in resource.items() if name not in hidden}
    for path in expand:
        expansion = _EXPANSIONS.get((resource["object"], path))
        if expansion is None:
            raise ApiError(f"This property cannot be expanded ({path}).", param="expand")
        served[path.partition(".")[0]] = expansion(account, resource)
    return served


def list_response(account: StripeAccount, resources: Iterable[Object], given: Object, *, url: str) -> Object:
    """`limit` objects (10, at most 100), newest first, after or before the one that the call names."""
    size = given.get("limit", _PAGE_SIZE)
    if not 1 <= size <= _LARGEST_PAGE:
        raise ApiError(f"This value must be between 1 and {_LARGEST_PAGE}.", param="limit")
    newest_first = list(resources)[::-1]
    before = given.get("ending_before")
    if before is not None:
        candidates = newest_first[: _index(newest_first, before)]
        shown, has_more = candidates[-size:], len(candidates) > size
    else:
        after = given.get("starting_after")
        candidates = newest_first if after is None else newest_first[_index(newest_first, after) + 1 :]
        shown, has_more = candidates[:size], len(candidates) > size
    expand = [_of_item(path) for path in given.get("expand", [])]
    return {
        "object": "list",
        "data": [object_response(account, resource, expand) for resource in shown],
        "has_more": has_more,
        "url": url,
    }


def is_within(moment: int, limits: Object) -> bool:
    """Whether a Unix time lies within gt, gte, lt and lte."""
    after: bool = limits.get("gt", moment - 1) < moment and limits.get("gte", moment) <= moment
    before: bool = moment < limits.get("lt", moment + 1) and moment <= limits.get("lte", moment)
    return after and before


def _payments_list(account: StripeAccount, invoice: Object) -> Object:
    """An invoice's payments as the list that `expand` serves, newest first."""
    payments = [dict(payment) for payment in invoices.payments_of(account, invoice)][::-1]
    shown = payments[:_PAGE_SIZE]
    return {
        "object": "list",
        "data": shown,
        "has_more": len(payments) > len(shown),
        "url": f"/v1/invoice_payments?invoice={invoice['id']}",
    }


def _index(resources: list[Object], identifier: str) -> int:
    for position, resource in enumerate(resources):
        if resource["id"] == identifier:
            return position
    raise not_found("object", identifier)


def _of_item(path: str) -> str:
    head, _, rest = path.partition(".")
    if head != "data" or not rest:
        raise ApiError(f"This property cannot be expanded ({path}).", param="expand")
    return rest


def _paid_off_stripe(account: StripeAccount, invoice: Object) -> int:
    records = (payment for payment in invoices.payments_of(account, invoice) if "payment_record" in payment["payment"])
    return sum(record["amount_paid"] or 0 for record in records)


def _credit_balances(account: StripeAccount, customer: Object) -> Object:
    """The balance by currency, in which credit is positive: opposite to the field `balance`."""
    currencies = {each["currency"] for each in transactions_of(account, customer)}
    balances = {currency: -balance_of(account, customer, currency) for currency in sorted(currencies)}
    return {currency: balance for currency, balance in balances.items() if balance}


def _setup_with_card(account: StripeAccount, session: Object) -> Object:
    """The setup intent of a session, with its card once it is saved."""
    intent = dict(account.find("setup_intent", session["setup_intent"]))
    if intent["payment_method"]:
        intent["payment_method"] = dict(account.find("payment_method", intent["payment_method"]))
    return intent


_EXPANSIONS: dict[tuple[str, str], Callable[[StripeAccount, Object], object]] = {
    ("invoice", "payments"): _payments_list,
    ("invoice", "amount_paid_off_stripe"): _paid_off_stripe,
    ("invoice", "customer"): lambda account, invoice: dict(account.find("customer", invoice["customer"])),
    ("customer", "invoice_credit_balance"): _credit_balances,
    ("customer", "cash_balance"): lambda _account, customer: customer.get("cash_balance"),
    ("checkout.session", "setup_intent.payment_method"): _setup_with_card,
    ("invoice_payment", "invoice"): lambda account, payment: dict(account.find("invoice", payment["invoice"])),
}
