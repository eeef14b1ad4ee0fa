"""Starts the stand-in: one HTTP server with the API, the hosted invoice pages and the control API."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from server.sandbox.stripe import cards, invoices, webhooks
from server.sandbox.stripe.account import Object, StripeAccount, new_seed
from server.sandbox.stripe.api import Api
from server.sandbox.stripe.card_pages import CARDS, card_page
from server.sandbox.stripe.control import Parts, control_routes
from server.sandbox.stripe.errors import ApiError
from server.sandbox.stripe.faults import Faults
from server.sandbox.stripe.idempotency import IdempotencyKeys
from server.sandbox.stripe.invoice_actions import Action, start_payment
from server.sandbox.stripe.invoice_pages import hosted_page, invoice_pdf
from server.sandbox.stripe.start_page import start_page_routes
from server.sandbox.stripe.webhooks import WebhookSender

_SHUTDOWN_SECONDS = 1.0
_STEPS: dict[str, Action] = {
    "pay": invoices.receive_payment,
    "decline": invoices.fail_payment,
    "transfer": start_payment,
}
"""What the buttons of a hosted page do."""


class StripeSandbox:
    """A running stand-in; `url` is the API's base address."""

    def __init__(self, parts: Parts, runner: web.AppRunner) -> None:
        self._parts = parts
        self._runner = runner

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return self._parts.account.url

    @property
    def account(self) -> StripeAccount:
        """The account's state, for tests in the same process."""
        return self._parts.account

    def set_webhook_url(self, url: str | None) -> None:
        """Set the default endpoint's address; None disables it."""
        webhooks.set_default_url(self._parts.account, url)
        self._parts.save()

    async def close(self) -> None:
        """Stop serving and delivering."""
        self._parts.faults.clear()
        await self._parts.webhooks.close()
        await self._runner.cleanup()


async def start_stripe_sandbox(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str = "sk_test_sandbox",
    webhook_secret: str = "whsec_sandbox",  # noqa: S107 - the sandbox's own, which protects nothing
    webhook_url: str | None = None,
    state_file: Path | None = None,
    seed: str | None = None,
    links: Mapping[str, str] | None = None,
) -> StripeSandbox:
    """Serve a simulated Stripe account.

    With `state_file` the account survives a restart. With a fixed `seed` equal calls create equal ids. `links` are the
    addresses of other pages, by name, for the start page.
    """
    account, faults = StripeAccount(seed or new_seed()), Faults()
    runner = web.AppRunner(web.Application(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)

    def save() -> None:
        if state_file is not None:
            account.save(state_file)

    keys = IdempotencyKeys(account)
    webhook_sender = WebhookSender(account, faults, save=save)
    api = Api(account, faults, keys, api_key=api_key, save=save)
    parts = Parts(account, faults, keys, api, webhook_sender, save)
    runner.app.add_routes(control_routes(parts))
    runner.app.add_routes(_page_routes(parts))
    runner.app.add_routes(start_page_routes(parts, links or {}))
    runner.app.router.add_route("*", "/v1/{path:.*}", api.handle)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await webhook_sender.close()
        await runner.cleanup()
        raise
    account.url = f"http://{host}:{runner.addresses[0][1]}"
    account.load(state_file)
    webhooks.set_default_endpoint(account, url=webhook_url, secret=webhook_secret)
    account.on_event = webhook_sender.dispatch
    webhook_sender.resume()
    return StripeSandbox(parts, runner)


def _page_routes(parts: Parts) -> list[web.RouteDef]:
    async def show(request: web.Request, *, status: int = HTTPStatus.OK) -> web.Response:
        invoice = _invoice(parts, request)
        pending = bool(parts.account.private[invoice["id"]].get("payment_pending"))
        declined = "declined" in request.query
        page = hosted_page(invoice, token=request.match_info["token"], pending=pending, declined=declined)
        return web.Response(text=page, content_type="text/html", status=status)

    async def pay(request: web.Request) -> web.Response:
        invoice, step = _invoice(parts, request), request.match_info["step"]
        try:
            _STEPS[step](parts.account, invoice)
        except ApiError:  # the page was old: it shows what has become of the invoice
            return await show(request, status=HTTPStatus.CONFLICT)
        parts.save()
        page = f"/i/{request.match_info['token']}{'?declined' if step == 'decline' else ''}"
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": page})

    async def download(request: web.Request) -> web.Response:
        invoice = _invoice(parts, request)
        disposition = f'inline; filename="invoice-{invoice["number"]}.pdf"'
        headers = {"Content-Disposition": disposition}
        return web.Response(body=invoice_pdf(invoice), content_type="application/pdf", headers=headers)

    async def show_card_page(request: web.Request) -> web.Response:
        session = _session(parts, request)
        customer = parts.account.find("customer", session["customer"])
        return web.Response(text=card_page(session, customer), content_type="text/html")

    async def save_card(request: web.Request) -> web.Response:
        session = _session(parts, request)
        try:
            cards.complete_session(parts.account, session, behaviour=request.match_info["behaviour"])
        except ApiError:  # the page was old
            return await show_card_page(request)
        parts.save()
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": session["success_url"]})

    handlers: list[tuple[str, str, Callable[[web.Request], Awaitable[web.Response]]]] = [
        ("GET", "/i/{token}", show),
        ("POST", f"/i/{{token}}/{{step:{'|'.join(_STEPS)}}}", pay),
        ("GET", "/i/{token}/pdf", download),
        ("GET", "/c/{id}", show_card_page),
        ("POST", f"/c/{{id}}/{{behaviour:{'|'.join(CARDS)}}}", save_card),
    ]
    return [web.route(method, path, handler) for method, path, handler in handlers]


def _session(parts: Parts, request: web.Request) -> Object:
    session = parts.account.objects["checkout.session"].get(request.match_info["id"])
    if session is None:
        raise web.HTTPNotFound(text="This link has expired.")
    return session


def _invoice(parts: Parts, request: web.Request) -> Object:
    token = request.match_info["token"]
    invoice_id = parts.account.tokens.get(token)
    if invoice_id is None or parts.account.private[invoice_id]["token"] != token:
        raise web.HTTPNotFound(text="This link has expired.")
    return parts.account.find("invoice", invoice_id)
