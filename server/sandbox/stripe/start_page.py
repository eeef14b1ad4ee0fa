"""The start page of the stand-in: its invoices, the webhooks that it has sent, and faults to play with."""

from collections.abc import Mapping, Sequence
from html import escape
from http import HTTPStatus
from itertools import islice
from typing import Any

from aiohttp import web

from server.sandbox.frame import framed
from server.sandbox.stripe.control import Parts
from server.sandbox.stripe.faults import Fault
from server.sandbox.stripe.invoice_pages import format_amount

_SHOWN = 20
_PLAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "slow": (
        "The next invoice takes 10 s",
        {"match": {"method": "POST", "path": "/v1/invoices"}, "fault": "hold_before", "seconds": 10},
    ),
    "broken": (
        "The next 3 calls that change something answer 500",
        {"match": {"method": "POST", "path": "/v1/*"}, "fault": "server_error", "times": 3},
    ),
    "hold": ("The webhook of the next payment is held", {"match": {"event": "invoice.paid"}, "fault": "hold"}),
    "duplicate": (
        "The webhook of the next payment comes twice",
        {"match": {"event": "invoice.paid"}, "fault": "duplicate"},
    ),
    "missign": (
        "The webhook of the next payment has a wrong signature",
        {"match": {"event": "invoice.paid"}, "fault": "missign", "secret": "whsec_wrong"},
    ),
}
"""By the name of the button: its text, and the fault of the control API."""

_STYLE = """
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 0 0 1rem; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .4rem 1rem .4rem 0; border-top: 1px solid var(--line); text-align: start; font-weight: 400; }
tr:first-child > * { border-top: 0; }
td { white-space: nowrap; }
td:last-child { padding-inline-end: 0; text-align: end; }
.state { padding: 0 .6rem; border-radius: 1rem; background: var(--plain); font-size: .9rem; font-weight: 600; }
.good { background: var(--good); color: var(--on-good); }
.waits { background: var(--low); color: var(--on-low); }
form { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)); }
button { min-height: 2.75rem; padding: .5rem .75rem; border: 1px solid var(--control); border-radius: .5rem;
         background: var(--card); color: var(--text); font: inherit; text-align: start; cursor: pointer; }
button:hover { border-color: var(--strong); }
.end { border-color: var(--strong); color: var(--strong); font-weight: 600; }
ul { margin: 0 0 1rem; padding-inline-start: 1.25rem; }
"""
_CONTENT = """<p>No money moves here. Invoices are paid, declined or left alone on their pages, as a customer would.</p>
<nav aria-label="Pages of the sandbox">{links}</nav>
<section class="card" aria-labelledby="invoices"><h2 id="invoices">Invoices</h2>{invoices}</section>
<section class="card" aria-labelledby="faults"><h2 id="faults">Faults to play with</h2>
<form method="post" action="/play">{buttons}</form>
<p id="waiting">Waiting to happen:</p>{faults}
<p class="faint">Further ones, and everything that a customer, a bank or the dashboard does: the
<a href="/_control/faults">control API</a>, which server/sandbox/stripe/control.py describes.</p></section>
<section class="card" aria-labelledby="webhooks"><h2 id="webhooks">Webhooks sent</h2>{webhooks}
<p class="faint">As JSON: <a href="/_control/deliveries">webhooks</a>, <a href="/_control/events">events</a>,
<a href="/_control/requests">calls of the API</a>.</p></section>"""


def start_page_routes(parts: Parts, links: Mapping[str, str]) -> list[web.RouteDef]:
    """The start page, with links to other pages by their names, and its buttons."""

    async def show(_request: web.Request) -> web.Response:
        return web.Response(text=_start_page(parts, links), content_type="text/html")

    async def play(request: web.Request) -> web.Response:
        name = str((await request.post()).get("name", ""))
        if name == "end":
            parts.faults.clear()
            for identifier in list(parts.webhooks.held):
                await parts.webhooks.deliver(parts.webhooks.held.pop(identifier))
        elif name in _PLAYS:
            parts.faults.add(_PLAYS[name][1])
        parts.save()
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": "/"})

    return [web.get("/", show), web.post("/play", play)]


def _start_page(parts: Parts, links: Mapping[str, str]) -> str:
    buttons = "".join(f'<button name="name" value="{name}">{text}</button>' for name, (text, _) in _PLAYS.items())
    active = [fault for fault in parts.faults.all() if not fault.times or fault.used < fault.times]
    held = [f"Held: the webhook {escape(event['type'])}" for event in parts.webhooks.held.values()]
    content = _CONTENT.format(
        links="".join(f'<a href="{escape(url)}">{escape(name)}</a>' for name, url in links.items()),
        invoices=_invoices(parts),
        webhooks=_webhooks(parts),
        buttons=f'{buttons}<button class="end" name="name" value="end">End all, and send what is held</button>',
        faults=_listed([*held, *map(_described, active)]),
    )
    return framed("Stripe stand-in", content, style=_STYLE)


def _invoices(parts: Parts) -> str:
    """Every finalized invoice, newest first."""
    account = parts.account
    tokens = [(token, each) for token, each in account.tokens.items() if account.private[each]["token"] == token]
    rows = []
    for token, identifier in reversed(tokens):
        invoice = account.find("invoice", identifier)
        amount = format_amount(invoice["total"], invoice["currency"])
        link = f'<a href="/i/{token}">Invoice {escape(str(invoice["number"]))}</a>'
        rows.append((link, amount, _state(invoice["status"], good="paid")))
    return _table(rows) or "<p>No invoice yet: order on the billing pages, or call CreateTopUp.</p>"


def _webhooks(parts: Parts) -> str:
    """The latest attempts, newest first."""
    rows = []
    for each in islice(reversed(parts.webhooks.log), _SHOWN):
        answer = f"answered {each['status']}" if each["status"] else "no answer"
        tries = "" if each["attempt"] == 1 else f"attempt {each['attempt']}"
        rows.append((escape(each["type"]), tries, _state(answer, good="answered 200")))
    return _table(rows) or "<p>None yet.</p>"


def _described(fault: Fault) -> str:
    """A fault of a button by the button's text, any other by its parts."""
    for text, body in _PLAYS.values():
        if (fault.match, fault.kind) == (body["match"], body["fault"]):
            return text
    return f"{fault.kind} of {escape(str(fault.match))}"


def _state(text: str, *, good: str) -> str:
    return f'<span class="state {"good" if text == good else "waits"}">{escape(text)}</span>'


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{name}</th><td>{detail}</td><td>{state}</td></tr>' for name, detail, state in rows
    )
    return f"<table>{lines}</table>" if rows else ""


def _listed(items: list[str]) -> str:
    shown = items or ["Nothing."]
    return f'<ul aria-labelledby="waiting">{"".join(f"<li>{item}</li>" for item in shown)}</ul>'
