"""The control API: faults, actions of the customer or the dashboard, and a view of the state. JSON, no key.

Faults. `POST /_control/faults` with `{"match": …, "fault": KIND, "times": 1, "skip": 0, …options}` answers the fault
with its `id`. The first `skip` matches pass, the next `times` (0: all) fail. `match` holds `method` and `path` for
calls, or `event` (its type) for webhooks, as globs in which `*` also matches `/`, and optionally `contains`: text in
the call's parameters or the event's data. The first matching fault that is not used up applies.

    call faults         options                       what happens
    rate_limit          should_retry                  429, not executed; should_retry is "true", "false" or absent
    lock_timeout        should_retry                  409 lock_timeout, not executed
    server_error        should_retry stored executes  500; stored: replayed for its key; executes: also executed
    bad_gateway         executes                      502 with an HTML body; executes: also executed and stored
    refuse              status type code message      any error in Stripe's shape (400), not executed; stored: replayed
                        param stored should_retry     for its key
    truncated           -                             executed; 200 with the first half of the JSON
    cut_off             -                             executed; the connection ends in the middle of the body
    drop_before         -                             the connection ends; not executed
    drop_after          -                             the connection ends; executed
    hold_before         seconds                       waits before executing, its key in use, until released or 60 s
    hold_after          seconds                       executed, then waits: the caller times out afterwards
    twice               -                             executed twice: two invoices with the same metadata
    change_parameters   set multiply                  replaces the call's parameters: {"set": {"currency": "usd"}},
                                                      {"multiply": {"amount": 100}}
    change_answer       set                           fields of the response only, by dotted path: {"set": {"id": "x"}}
    act_before          action options                an invoice action (below) just before executing, and
    act_after           action options                just after; without effect where the state forbids it

    event faults        options        what happens
    duplicate           copies         delivered 1 + copies (1) times at once
    second_id           -              a second event with another id for the same fact
    hold                -              not delivered until released
    lose                -              never delivered, but listed as undelivered
    reorder             -              delivered after the next event
    change_event        set            fields by dotted path: {"set": {"livemode": true, "account": "acct_other"}}
    missign             age_seconds    the first attempt has a signature of another age (negative: future) or secret;
                        secret         later attempts are signed correctly

    GET    /_control/faults                    {"faults": [… with `seen` and `used`]}
    GET    /_control/faults/{id}/met           answers once it has applied; for hold_*: once a call is held
    POST   /_control/faults/{id}/release       releases what it holds
    DELETE /_control/faults[/{id}]             one, or all

Invoice actions. `POST /_control/invoices/{id}/{action}` with the options as a JSON object answers the invoice:
    pay {amount, out_of_band}   overpay {amount}   fail_payment   start_payment (voiding is refused until pay or
    fail_payment)   void   mark_uncollectible   finalize   delete   refund {amount}   dispute {inquiry}
    escalate_dispute   close_dispute {outcome}   credit_note {amount, to_balance}   set_tax {percent}
    set_customer_balance {amount, kind, currency}   set_coupon {percent}   transfer {amount} (to the customer's cash)
    delete_customer   change {fields: {dotted path: value}}   expire_links   emit {event}
`pay` with less than what remains leaves it open, with more also sends invoice.overpaid. Amounts are minor units. What
Stripe would refuse is answered 409.

Cards. `POST /_control/cards/{id}/{action}` answers the saved card, a payment method:
    works   declined   authentication (how its next charges end)   detach (as in the dashboard)   renew (by its bank)

State.
    GET    /_control/cards                {"count", "cards"}: all saved cards, oldest first
    GET    /_control/invoices             {"count", "invoices"}: all, each with its `payments`
    GET    /_control/requests             {"count", "requests"}: calls so far; ?method=POST&path=/v1/invoices (globs)
    GET    /_control/deliveries           {"count", "deliveries"}: webhook attempts; ?event=ID&type=GLOB
    GET    /_control/deliveries/done      answers once nothing is being delivered or waiting to be tried again
    GET    /_control/events               {"count", "events"}: id, type, object, held, undelivered; ?type=GLOB
    DELETE /_control/requests             clears the log; likewise /_control/deliveries

Events.
    POST   /_control/events               {"type", "object"}: records and delivers an event about any object
    POST   /_control/events/release       {"reverse": false, "events": [ids, default all held]}: one after another;
                                          answers {"delivered": [{"event", "statuses"}]}
    POST   /_control/events/{id}/deliver  {"times": 1}: again, all at once; answers {"statuses"}
    POST   /_control/deliver              {"body": text, "age_seconds", "secret", "header"}: any body, once; answers
                                          {"answers": [{"status", "body"}]}

Account.
    GET, PATCH /_control/settings         account, livemode, minimum_charges, tax_percent, automatic_tax (percent by
                                          country), retry_delay_seconds, retry_limit, delivery_timeout_seconds
    POST   /_control/clock                {"advance_seconds"}: advances the account's time (keys and events age)
    POST   /_control/keys/prune           {"older_than_seconds": 0}: deletes idempotency keys; answers {"pruned"}
    PUT    /_control/webhook              {"url": text or null}: sets the default endpoint's address
    POST   /_control/webhook_secret/roll  {"secret": optional}: a new secret, signing with both; answers {"secrets"}
    POST   /_control/webhook_secret/expire  only the newest secret signs
    POST   /_control/reset                deletes everything except the endpoints
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any

from aiohttp import web

from server.sandbox.stripe import cards
from server.sandbox.stripe.account import Object, StripeAccount, default_settings
from server.sandbox.stripe.api import Api
from server.sandbox.stripe.errors import ApiError, not_found
from server.sandbox.stripe.faults import Fault, Faults
from server.sandbox.stripe.idempotency import IdempotencyKeys
from server.sandbox.stripe.invoice_actions import ACTIONS
from server.sandbox.stripe.responses import object_response
from server.sandbox.stripe.webhooks import SignatureOptions, WebhookSender, expire_secrets, roll_secret, set_default_url


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one stand-in."""

    account: StripeAccount
    faults: Faults
    keys: IdempotencyKeys
    api: Api
    webhooks: WebhookSender
    save: Callable[[], None]
    """Writes the state file; called after each change."""


async def add_fault(parts: Parts, request: web.Request) -> object:
    """Add a fault."""
    return parts.faults.add(await _options(request)).as_json()


async def clear_faults(parts: Parts, _request: web.Request) -> object:
    """Remove every fault."""
    parts.faults.clear()
    return {}


async def remove_fault(parts: Parts, request: web.Request) -> object:
    """Remove one fault."""
    parts.faults.remove(_fault(parts, request))
    return {}


async def await_fault(parts: Parts, request: web.Request) -> object:
    """Answer once the fault has applied."""
    fault = _fault(parts, request)
    await fault.met.wait()
    return fault.as_json()


async def release_fault(parts: Parts, request: web.Request) -> object:
    """Release what the fault holds."""
    fault = _fault(parts, request)
    fault.released.set()
    return fault.as_json()


async def act_on_invoice(parts: Parts, request: web.Request) -> object:
    """Run an invoice action; answers the changed invoice."""
    action = ACTIONS.get(request.match_info["action"])
    if action is None:
        raise ValueError(f"the actions are {', '.join(ACTIONS)}")
    invoice = parts.account.find("invoice", request.match_info["id"])
    action(parts.account, invoice, **await _options(request))
    return object_response(parts.account, invoice, ["payments"])


async def act_on_card(parts: Parts, request: web.Request) -> object:
    """Detach or renew a saved card, or set how its next charges end; answers the changed card."""
    method, action = parts.account.find("payment_method", request.match_info["id"]), request.match_info["action"]
    if action == "detach":
        return cards.detach(parts.account, method)
    if action == "renew":
        return cards.renew(parts.account, method)
    return cards.set_behaviour(parts.account, method, behaviour=action)


async def list_cards(parts: Parts, _request: web.Request) -> object:
    """Every saved card, oldest first."""
    found = list(parts.account.objects["payment_method"].values())
    return {"count": len(found), "cards": found}


async def emit_event(parts: Parts, request: web.Request) -> object:
    """Record and deliver an event about any object."""
    options = await _options(request, "type", "object")
    return parts.account.emit(options["type"], options["object"])


async def release_events(parts: Parts, request: web.Request) -> object:
    """Deliver the held events one after another, in the given order."""
    options = await _options(request, "reverse", "events")
    chosen = options.get("events", list(parts.webhooks.held))
    delivered = []
    for identifier in reversed(chosen) if options.get("reverse") else chosen:
        event = parts.webhooks.held.pop(identifier)
        delivered.append({"event": identifier, "statuses": await parts.webhooks.deliver(event)})
    return {"delivered": delivered}


async def deliver_again(parts: Parts, request: web.Request) -> object:
    """Deliver the same event again, `times` times at once."""
    options = await _options(request, "times")
    event = parts.account.find("event", request.match_info["id"])
    results = await asyncio.gather(*(parts.webhooks.deliver(event) for _ in range(int(options.get("times", 1)))))
    return {"statuses": [status for statuses in results for status in statuses]}


async def deliver_raw(parts: Parts, request: web.Request) -> object:
    """Post any text once, with the given signature."""
    options = await _options(request, "body", "age_seconds", "secret", "header")
    signature = SignatureOptions(int(options.get("age_seconds", 0)), options.get("secret"))
    return {"answers": await parts.webhooks.send(str(options["body"]), signature, options.get("header"))}


async def change_settings(parts: Parts, request: web.Request) -> object:
    """Change settings."""
    parts.account.settings.update(await _options(request, *default_settings()))
    return parts.account.settings


async def advance_clock(parts: Parts, request: web.Request) -> object:
    """Advance the account's time."""
    options = await _options(request, "advance_seconds")
    parts.account.clock_ahead_seconds += int(options["advance_seconds"])
    return {"now": parts.account.now()}


async def prune_keys(parts: Parts, request: web.Request) -> object:
    """Delete old idempotency keys, or all."""
    options = await _options(request, "older_than_seconds")
    return {"pruned": parts.keys.prune(older_than_seconds=int(options.get("older_than_seconds", 0)))}


async def set_webhook(parts: Parts, request: web.Request) -> object:
    """Set the default endpoint's address."""
    options = await _options(request, "url")
    return set_default_url(parts.account, options["url"])


async def roll_webhook_secret(parts: Parts, request: web.Request) -> object:
    """Add a webhook secret; the old one stays valid."""
    options = await _options(request, "secret")
    return {"secrets": roll_secret(parts.account, options.get("secret"))}


async def expire_webhook_secrets(parts: Parts, _request: web.Request) -> object:
    """Keep only the newest webhook secret."""
    return {"secrets": expire_secrets(parts.account)}


async def reset(parts: Parts, _request: web.Request) -> object:
    """Delete objects, faults and logs; the endpoints stay."""
    parts.account.reset()
    parts.faults.clear()
    parts.webhooks.held.clear()
    parts.webhooks.log.clear()
    parts.api.log.clear()
    return {}


async def list_faults(parts: Parts, _request: web.Request) -> object:
    """Every fault with its counts."""
    return {"faults": [fault.as_json() for fault in parts.faults.all()]}


async def list_invoices(parts: Parts, _request: web.Request) -> object:
    """Every invoice with its payments, oldest first."""
    found = [
        object_response(parts.account, invoice, ["payments"]) for invoice in parts.account.objects["invoice"].values()
    ]
    return {"count": len(found), "invoices": found}


async def list_requests(parts: Parts, request: web.Request) -> object:
    """The API calls, oldest first."""
    return _matching("requests", list(parts.api.log), request)


async def clear_requests(parts: Parts, _request: web.Request) -> object:
    """Clear the log of API calls."""
    parts.api.log.clear()
    return {}


async def list_deliveries(parts: Parts, request: web.Request) -> object:
    """The webhook attempts, oldest first."""
    return _matching("deliveries", list(parts.webhooks.log), request)


async def await_deliveries(parts: Parts, _request: web.Request) -> object:
    """Answer once every delivery has succeeded or failed."""
    await parts.webhooks.wait_until_idle()
    return {}


async def clear_deliveries(parts: Parts, _request: web.Request) -> object:
    """Clear the log of webhook attempts."""
    parts.webhooks.log.clear()
    return {}


async def list_events(parts: Parts, request: web.Request) -> object:
    """Every event, oldest first, with the state of its delivery."""
    events = [
        {
            "id": event["id"],
            "type": event["type"],
            "object": event["data"]["object"].get("id"),
            "held": event["id"] in parts.webhooks.held,
            "undelivered": event["id"] in parts.account.undelivered,
        }
        for event in parts.account.objects["event"].values()
    ]
    return _matching("events", events, request)


async def get_settings(parts: Parts, _request: web.Request) -> object:
    """The account's settings."""
    return parts.account.settings


_HANDLERS: dict[str, Callable[[Parts, web.Request], Awaitable[object]]] = {
    "GET /faults": list_faults,
    "POST /faults": add_fault,
    "DELETE /faults": clear_faults,
    "DELETE /faults/{id}": remove_fault,
    "GET /faults/{id}/met": await_fault,
    "POST /faults/{id}/release": release_fault,
    "GET /invoices": list_invoices,
    "POST /invoices/{id}/{action}": act_on_invoice,
    "GET /cards": list_cards,
    "POST /cards/{id}/{action}": act_on_card,
    "GET /requests": list_requests,
    "DELETE /requests": clear_requests,
    "GET /deliveries": list_deliveries,
    "DELETE /deliveries": clear_deliveries,
    "GET /deliveries/done": await_deliveries,
    "GET /events": list_events,
    "POST /events": emit_event,
    "POST /events/release": release_events,
    "POST /events/{id}/deliver": deliver_again,
    "POST /deliver": deliver_raw,
    "GET /settings": get_settings,
    "PATCH /settings": change_settings,
    "POST /clock": advance_clock,
    "POST /keys/prune": prune_keys,
    "PUT /webhook": set_webhook,
    "POST /webhook_secret/roll": roll_webhook_secret,
    "POST /webhook_secret/expire": expire_webhook_secrets,
    "POST /reset": reset,
}


def control_routes(parts: Parts) -> list[web.RouteDef]:
    """Every path of the control API."""
    routes = []
    for name, handler in _HANDLERS.items():
        method, _, path = name.partition(" ")
        routes.append(web.route(method, f"/_control{path}", _json_handler(parts, handler)))
    return routes


def _json_handler(
    parts: Parts, handler: Callable[[Parts, web.Request], Awaitable[object]]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that answers JSON. Invalid: 400; not found: 404; forbidden by the state: 409."""

    async def handle(request: web.Request) -> web.Response:
        try:
            answer = await handler(parts, request)
        except ApiError as error:
            status = HTTPStatus.CONFLICT if error.stored else error.status
            return web.json_response({"error": error.message}, status=status)
        except KeyError as error:
            return web.json_response({"error": f"missing or unknown: {error}"}, status=HTTPStatus.BAD_REQUEST)
        except (ValueError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=HTTPStatus.BAD_REQUEST)
        parts.save()
        return web.json_response(answer)

    return handle


async def _options(request: web.Request, *known: str) -> dict[str, Any]:
    """The body's JSON object (empty when there is none); raises ValueError or TypeError when invalid or unknown."""
    text = await request.text()
    body = json.loads(text) if text else {}
    if not isinstance(body, dict):
        raise TypeError("the body must be a JSON object")
    if known and set(body) - set(known):
        raise ValueError(f"the options are {', '.join(known)}")
    return body


def _fault(parts: Parts, request: web.Request) -> Fault:
    fault = parts.faults.find(request.match_info["id"])
    if fault is None:
        raise not_found("fault", request.match_info["id"])
    return fault


def _matching(name: str, entries: list[Object], request: web.Request) -> object:
    found = [
        entry
        for entry in entries
        if all(fnmatchcase(str(entry[field]), pattern) for field, pattern in request.query.items())
    ]
    return {"count": len(found), name: found}
