"""The control API: asks the stand-in to misbehave, plays the customer or the dashboard, and looks inside. JSON, no key.

Faults. `POST /_control/faults` with `{"match": …, "fault": KIND, "times": 1, "skip": 0, …options}` answers the fault
with its `id`. The first `skip` matches pass, the next `times` (0: all) go wrong. `match` holds `method` and `path` for
calls, or `event` (its type) for webhooks, as globs in which `*` also matches `/`, and optionally `contains`: text in
the call's parameters or the event's data. A call or event meets the first fault that matches and is not used up.

    call faults         options                       what happens
    rate_limit          should_retry                  429, not executed; should_retry is "true", "false" or absent
    lock_timeout        should_retry                  409 lock_timeout, not executed
    server_error        should_retry stored executes  500; stored: replayed for its key; executes: the work was done
    bad_gateway         executes                      502 with an HTML body; executes: done and kept under the key
    refuse              status type code message      any error in Stripe's shape (400), not executed; stored: replayed
                        param stored should_retry     for its key
    truncated           -                             executed; 200 with the first half of the JSON
    cut_off             -                             executed; the connection ends in the middle of the body
    drop_before         -                             the connection ends; not executed
    drop_after          -                             the connection ends; executed
    hold_before         seconds                       waits before executing, its key in use, until released or 60 s
    hold_after          seconds                       executed, then waits: a timeout after the work was done
    twice               -                             executed twice: two invoices with the same metadata
    change_parameters   set multiply                  the call's parameters become others: {"set": {"currency": "usd"}},
                                                      {"multiply": {"amount": 100}}
    change_answer       set                           fields of the answer only, by dotted path: {"set": {"id": "x"}}
    act_before          action options                an invoice action (below) just before executing, and
    act_after           action options                just after; one that the state forbids does nothing

    event faults        options        what happens
    duplicate           copies         delivered 1 + copies (1) times at once
    second_id           -              a second event with another id for the same fact
    hold                -              not delivered until released
    lose                -              never delivered, but listed as undelivered
    reorder             -              delivered after the next event
    change_event        set            fields by dotted path: {"set": {"livemode": true, "account": "acct_other"}}
    missign             age_seconds    the first attempt has a signature of another age (negative: future) or secret;
                        secret         later attempts are right

    GET    /_control/faults                    {"faults": [… with `seen` and `used`]}
    GET    /_control/faults/{id}/met           answers once it has been met; for hold_*: once something is held
    POST   /_control/faults/{id}/release       what it holds goes on
    DELETE /_control/faults[/{id}]             one, or all

Invoice actions. `POST /_control/invoices/{id}/{action}` with the options as a JSON object answers the invoice:
    pay {amount, out_of_band}   overpay {amount}   fail_payment   start_payment (voiding is refused until pay or
    fail_payment)   void   mark_uncollectible   finalize   delete   refund {amount}   dispute   close_dispute {outcome}
    credit_note {amount}   set_tax {percent}   set_customer_balance {amount}   change {fields: {dotted path: value}}
    expire_links   emit {event}
`pay` with less than what remains leaves it open, with more also sends invoice.overpaid. Amounts are minor units. What
Stripe would refuse is answered 409.

Looking inside.
    GET    /_control/invoices             {"count", "invoices"}: all of them, each with its `payments`
    GET    /_control/requests             {"count", "requests"}: calls so far; ?method=POST&path=/v1/invoices (globs)
    GET    /_control/deliveries           {"count", "deliveries"}: webhook attempts; ?event=ID&type=GLOB
    GET    /_control/deliveries/done      answers once nothing is being delivered or waiting to be tried again
    GET    /_control/events               {"count", "events"}: id, type, object, held, undelivered; ?type=GLOB
    DELETE /_control/requests             forgets the log; likewise /_control/deliveries

Events.
    POST   /_control/events               {"type", "object"}: records and delivers an event about any object
    POST   /_control/events/release       {"reverse": false, "events": [ids, default all held]}: one after another;
                                          answers {"delivered": [{"event", "statuses"}]}
    POST   /_control/events/{id}/deliver  {"times": 1}: again, all at once; answers {"statuses"}
    POST   /_control/deliver              {"body": text, "age_seconds", "secret", "header"}: any body, once; answers
                                          {"answers": [{"status", "body"}]}

Account.
    GET, PATCH /_control/settings         account, livemode, minimum_charges, tax_percent, retry_delay_seconds,
                                          retry_limit, delivery_timeout_seconds
    POST   /_control/clock                {"advance_seconds"}: the account's time moves on (keys age, events get older)
    POST   /_control/keys/prune           {"older_than_seconds": 0}: forgets idempotency keys; answers {"pruned"}
    PUT    /_control/webhook              {"url": text or null}: where the default endpoint is
    POST   /_control/webhook_secret/roll  {"secret": optional}: a new secret, signing with both; answers {"secrets"}
    POST   /_control/webhook_secret/expire  only the newest secret signs
    POST   /_control/reset                forgets everything but the endpoints
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

from server.sandbox.stripe import control_acts, control_views
from server.sandbox.stripe.desk import Desk, as_json

_HANDLERS: dict[str, Callable[[Desk, web.Request], Awaitable[object]]] = {
    "GET /faults": control_views.list_faults,
    "POST /faults": control_acts.add_fault,
    "DELETE /faults": control_acts.clear_faults,
    "DELETE /faults/{id}": control_acts.remove_fault,
    "GET /faults/{id}/met": control_acts.await_fault,
    "POST /faults/{id}/release": control_acts.release_fault,
    "GET /invoices": control_views.list_invoices,
    "POST /invoices/{id}/{action}": control_acts.act,
    "GET /requests": control_views.list_requests,
    "DELETE /requests": control_views.clear_requests,
    "GET /deliveries": control_views.list_deliveries,
    "DELETE /deliveries": control_views.clear_deliveries,
    "GET /deliveries/done": control_views.await_deliveries,
    "GET /events": control_views.list_events,
    "POST /events": control_acts.emit,
    "POST /events/release": control_acts.release_events,
    "POST /events/{id}/deliver": control_acts.deliver_again,
    "POST /deliver": control_acts.deliver_raw,
    "GET /settings": control_views.settings,
    "PATCH /settings": control_acts.change_settings,
    "POST /clock": control_acts.advance_clock,
    "POST /keys/prune": control_acts.prune_keys,
    "PUT /webhook": control_acts.set_webhook,
    "POST /webhook_secret/roll": control_acts.roll,
    "POST /webhook_secret/expire": control_acts.expire,
    "POST /reset": control_acts.reset,
}


def control_routes(desk: Desk) -> list[web.RouteDef]:
    """Every path of the control API."""
    routes = []
    for name, handler in _HANDLERS.items():
        method, _, path = name.partition(" ")
        routes.append(web.route(method, f"/_control{path}", as_json(desk, handler)))
    return routes
