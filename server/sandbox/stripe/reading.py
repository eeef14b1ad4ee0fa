"""How objects are served: one with its expansions, or a page of many, newest first."""

from collections.abc import Callable, Iterable

from server.sandbox.stripe import settling
from server.sandbox.stripe.books import Books, Object
from server.sandbox.stripe.refusal import Refusal, missing

_PAGE_SIZE = 10
_LARGEST_PAGE = 100


def view(books: Books, thing: Object, expand: Iterable[str] = ()) -> Object:
    """A copy of the object with what the call asked to expand."""
    served = dict(thing)
    for path in expand:
        expansion = _EXPANSIONS.get((thing["object"], path))
        if expansion is None:
            raise Refusal(f"This property cannot be expanded ({path}).", param="expand")
        served[path] = expansion(books, thing)
    return served


def page(books: Books, things: Iterable[Object], given: Object, *, url: str) -> Object:
    """`limit` objects (10, at most 100), newest first, after or before the one that the call names."""
    size = given.get("limit", _PAGE_SIZE)
    if not 1 <= size <= _LARGEST_PAGE:
        raise Refusal(f"This value must be between 1 and {_LARGEST_PAGE}.", param="limit")
    newest_first = list(things)[::-1]
    before = given.get("ending_before")
    if before is not None:
        candidates = newest_first[: _index(newest_first, before)]
        shown, has_more = candidates[-size:], len(candidates) > size
    else:
        after = given.get("starting_after")
        candidates = newest_first if after is None else newest_first[_index(newest_first, after) + 1 :]
        shown, has_more = candidates[:size], len(candidates) > size
    expand = [_of_item(path) for path in given.get("expand", [])]
    return {"object": "list", "data": [view(books, thing, expand) for thing in shown], "has_more": has_more, "url": url}


def within(moment: int, limits: Object) -> bool:
    """Whether a Unix time lies within gt, gte, lt and lte."""
    after: bool = limits.get("gt", moment - 1) < moment and limits.get("gte", moment) <= moment
    before: bool = moment < limits.get("lt", moment + 1) and moment <= limits.get("lte", moment)
    return after and before


def payments_page(books: Books, invoice: Object) -> Object:
    """An invoice's payments as the list that `expand` serves, newest first."""
    payments = [dict(payment) for payment in settling.payments_of(books, invoice)][::-1]
    return {
        "object": "list",
        "data": payments,
        "has_more": False,
        "url": f"/v1/invoice_payments?invoice={invoice['id']}",
    }


def _index(things: list[Object], identifier: str) -> int:
    for position, thing in enumerate(things):
        if thing["id"] == identifier:
            return position
    raise missing("object", identifier)


def _of_item(path: str) -> str:
    head, _, rest = path.partition(".")
    if head != "data" or not rest:
        raise Refusal(f"This property cannot be expanded ({path}).", param="expand")
    return rest


def _paid_off_stripe(books: Books, invoice: Object) -> int:
    records = (payment for payment in settling.payments_of(books, invoice) if "payment_record" in payment["payment"])
    return sum(record["amount_paid"] or 0 for record in records)


_EXPANSIONS: dict[tuple[str, str], Callable[[Books, Object], object]] = {
    ("invoice", "payments"): payments_page,
    ("invoice", "amount_paid_off_stripe"): _paid_off_stripe,
    ("invoice", "customer"): lambda books, invoice: dict(books.find("customer", invoice["customer"])),
    ("invoice_payment", "invoice"): lambda books, payment: dict(books.find("invoice", payment["invoice"])),
}
