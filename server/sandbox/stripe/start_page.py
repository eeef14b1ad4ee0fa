"""The start page of the stand-in: its invoices, the webhooks that it has sent, and faults to play with."""

from collections.abc import Mapping
from html import escape
from http import HTTPStatus
from itertools import islice
from typing import Any

from aiohttp import web

from server.sandbox.stripe.control import Parts
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
    "duplicate": ("The next webhook comes twice", {"match": {"event": "*"}, "fault": "duplicate"}),
    "missign": (
        "The next webhook is signed with a wrong secret",
        {"match": {"event": "*"}, "fault": "missign", "secret": "whsec_wrong"},
    ),
}
"""By the name of the button: its text, and the fault of the control API."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Stripe stand-in</title>
<link rel="icon" href="data:,">
<style>
  :root {{ color-scheme: light dark; }}
  html {{ background: Canvas; color: CanvasText; }}
  body {{ max-width: 54rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }}
  form {{ display: flex; flex-wrap: wrap; gap: .5rem; }}
  button {{ padding: .5rem .75rem; font: inherit; }}
  li {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<main>
<h1>Stripe stand-in</h1>
<p>No money moves here. {links}</p>
<h2>Invoices</h2>
{invoices}
<h2>Webhooks sent</h2>
{webhooks}
<h2>Faults to play with</h2>
<form method="post" action="/play">{buttons}</form>
{faults}
<p>Further ones, and everything that a customer, a bank or the dashboard does: the
<a href="/_control/faults">control API</a>, which server/sandbox/stripe/control.py describes. It also lists the
<a href="/_control/requests">calls</a>, <a href="/_control/deliveries">webhooks</a> and
<a href="/_control/events">events</a>.</p>
</main>
</body>
</html>
"""


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
    sent = islice(reversed(parts.webhooks.log), _SHOWN)
    return _PAGE.format(
        links=" · ".join(f'<a href="{escape(url)}">{escape(name)}</a>' for name, url in links.items()),
        invoices=_invoices(parts),
        webhooks=_listed([f"{escape(each['type'])}: answered {each['status']}" for each in sent], "None yet."),
        buttons=f'{buttons}<button name="name" value="end">End all, and send what is held</button>',
        faults=_listed([f"Waiting: {each.kind} of {escape(str(each.match))}" for each in active], "None is waiting."),
    )


def _invoices(parts: Parts) -> str:
    """Every finalized invoice, newest first."""
    account = parts.account
    tokens = [(token, each) for token, each in account.tokens.items() if account.private[each]["token"] == token]
    items = []
    for token, identifier in reversed(tokens):
        invoice = account.find("invoice", identifier)
        amount = format_amount(invoice["total"], invoice["currency"])
        number = escape(str(invoice["number"]))
        items.append(f'<a href="/i/{token}">Invoice {number}</a>: {amount}, {escape(invoice["status"])}')
    return _listed(items, "No invoice yet: call CreateTopUp.")


def _listed(items: list[str], empty: str) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>" if items else f"<p>{empty}</p>"
