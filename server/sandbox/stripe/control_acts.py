"""The half of the control API that makes something happen."""

import asyncio

from aiohttp import web

from server.sandbox.stripe.actions import ACTIONS
from server.sandbox.stripe.books import default_settings
from server.sandbox.stripe.delivery import Signing
from server.sandbox.stripe.desk import Desk, options_of
from server.sandbox.stripe.endpoints import expire_secrets, roll_secret, set_default_url
from server.sandbox.stripe.faults import Fault
from server.sandbox.stripe.reading import view
from server.sandbox.stripe.refusal import missing


async def add_fault(desk: Desk, request: web.Request) -> object:
    """A fault from now on."""
    return desk.faults.add(await options_of(request)).as_json()


async def clear_faults(desk: Desk, _request: web.Request) -> object:
    """No faults any more."""
    desk.faults.clear()
    return {}


async def remove_fault(desk: Desk, request: web.Request) -> object:
    """One fault less."""
    desk.faults.remove(_fault(desk, request))
    return {}


async def await_fault(desk: Desk, request: web.Request) -> object:
    """Answers once the fault has been met."""
    fault = _fault(desk, request)
    await fault.met.wait()
    return fault.as_json()


async def release_fault(desk: Desk, request: web.Request) -> object:
    """What the fault holds goes on."""
    fault = _fault(desk, request)
    fault.released.set()
    return fault.as_json()


async def act(desk: Desk, request: web.Request) -> object:
    """One of the invoice actions; answers the invoice as it then is."""
    action = ACTIONS.get(request.match_info["action"])
    if action is None:
        raise ValueError(f"the actions are {', '.join(ACTIONS)}")
    invoice = desk.books.find("invoice", request.match_info["id"])
    action(desk.books, invoice, **await options_of(request))
    return view(desk.books, invoice, ["payments"])


async def emit(desk: Desk, request: web.Request) -> object:
    """An event about any object, recorded and delivered."""
    options = await options_of(request, "type", "object")
    return desk.books.emit(options["type"], options["object"])


async def release_events(desk: Desk, request: web.Request) -> object:
    """Deliver what is held, one after another, in the order asked for."""
    options = await options_of(request, "reverse", "events")
    chosen = options.get("events", list(desk.courier.held))
    delivered = []
    for identifier in reversed(chosen) if options.get("reverse") else chosen:
        event = desk.courier.held.pop(identifier)
        delivered.append({"event": identifier, "statuses": await desk.courier.deliver(event)})
    return {"delivered": delivered}


async def deliver_again(desk: Desk, request: web.Request) -> object:
    """The same event again, as often as asked, all at once."""
    options = await options_of(request, "times")
    event = desk.books.find("event", request.match_info["id"])
    results = await asyncio.gather(*(desk.courier.deliver(event) for _ in range(int(options.get("times", 1)))))
    return {"statuses": [status for statuses in results for status in statuses]}


async def deliver_raw(desk: Desk, request: web.Request) -> object:
    """Any text, signed as asked, posted once."""
    options = await options_of(request, "body", "age_seconds", "secret", "header")
    signing = Signing(int(options.get("age_seconds", 0)), options.get("secret"))
    return {"answers": await desk.courier.send(str(options["body"]), signing, options.get("header"))}


async def change_settings(desk: Desk, request: web.Request) -> object:
    """Other settings from now on."""
    desk.books.settings.update(await options_of(request, *default_settings()))
    return desk.books.settings


async def advance_clock(desk: Desk, request: web.Request) -> object:
    """The account's time moves on."""
    options = await options_of(request, "advance_seconds")
    desk.books.clock_ahead_seconds += int(options["advance_seconds"])
    return {"now": desk.books.now()}


async def prune_keys(desk: Desk, request: web.Request) -> object:
    """Old idempotency keys, or all, are forgotten."""
    options = await options_of(request, "older_than_seconds")
    return {"pruned": desk.keys.prune(older_than_seconds=int(options.get("older_than_seconds", 0)))}


async def set_webhook(desk: Desk, request: web.Request) -> object:
    """Where the default endpoint is from now on."""
    options = await options_of(request, "url")
    return set_default_url(desk.books, options["url"])


async def roll(desk: Desk, request: web.Request) -> object:
    """A new webhook secret beside the old."""
    options = await options_of(request, "secret")
    return {"secrets": roll_secret(desk.books, options.get("secret"))}


async def expire(desk: Desk, _request: web.Request) -> object:
    """Only the newest webhook secret signs."""
    return {"secrets": expire_secrets(desk.books)}


async def reset(desk: Desk, _request: web.Request) -> object:
    """An account without objects, faults or logs; its endpoints stay."""
    desk.books.forget()
    desk.faults.clear()
    desk.courier.held.clear()
    desk.courier.log.clear()
    desk.api.log.clear()
    return {}


def _fault(desk: Desk, request: web.Request) -> Fault:
    fault = desk.faults.find(request.match_info["id"])
    if fault is None:
        raise missing("fault", request.match_info["id"])
    return fault
