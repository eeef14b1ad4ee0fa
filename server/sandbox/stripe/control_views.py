"""The half of the control API that looks inside."""

from fnmatch import fnmatchcase

from aiohttp import web

from server.sandbox.stripe.books import Object
from server.sandbox.stripe.desk import Desk
from server.sandbox.stripe.reading import view


async def list_faults(desk: Desk, _request: web.Request) -> object:
    """Every fault with how often it was met."""
    return {"faults": [fault.as_json() for fault in desk.faults.all()]}


async def list_invoices(desk: Desk, _request: web.Request) -> object:
    """Every invoice with its payments, oldest first."""
    found = [view(desk.books, invoice, ["payments"]) for invoice in desk.books.objects["invoice"].values()]
    return {"count": len(found), "invoices": found}


async def list_requests(desk: Desk, request: web.Request) -> object:
    """The API calls, oldest first."""
    return _matching("requests", list(desk.api.log), request)


async def clear_requests(desk: Desk, _request: web.Request) -> object:
    """Forget the API calls so far."""
    desk.api.log.clear()
    return {}


async def list_deliveries(desk: Desk, request: web.Request) -> object:
    """The webhook attempts, oldest first."""
    return _matching("deliveries", list(desk.courier.log), request)


async def await_deliveries(desk: Desk, _request: web.Request) -> object:
    """Answers once every delivery has ended, in whatever way."""
    await desk.courier.idle()
    return {}


async def clear_deliveries(desk: Desk, _request: web.Request) -> object:
    """Forget the webhook attempts so far."""
    desk.courier.log.clear()
    return {}


async def list_events(desk: Desk, request: web.Request) -> object:
    """Every event, oldest first, with what became of its delivery."""
    events = [
        {
            "id": event["id"],
            "type": event["type"],
            "object": event["data"]["object"].get("id"),
            "held": event["id"] in desk.courier.held,
            "undelivered": event["id"] in desk.books.undelivered,
        }
        for event in desk.books.objects["event"].values()
    ]
    return _matching("events", events, request)


async def settings(desk: Desk, _request: web.Request) -> object:
    """The account's settings."""
    return desk.books.settings


def _matching(name: str, entries: list[Object], request: web.Request) -> object:
    found = [
        entry
        for entry in entries
        if all(fnmatchcase(str(entry[field]), pattern) for field, pattern in request.query.items())
    ]
    return {"count": len(found), name: found}
