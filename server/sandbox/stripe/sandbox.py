"""Starts the stand-in: one HTTP server with the API, the hosted invoice pages and the control API."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from server.sandbox.stripe import endpoints, settling
from server.sandbox.stripe.api import Api
from server.sandbox.stripe.books import Books, Object, new_seed
from server.sandbox.stripe.control import control_routes
from server.sandbox.stripe.delivery import Courier
from server.sandbox.stripe.desk import Desk
from server.sandbox.stripe.faults import Faults
from server.sandbox.stripe.hosted_page import hosted_page
from server.sandbox.stripe.idempotency import Keys
from server.sandbox.stripe.pdf import invoice_pdf
from server.sandbox.stripe.refusal import Refusal

_SHUTDOWN_SECONDS = 1.0


class StripeSandbox:
    """A running stand-in; `url` is the API's base address."""

    def __init__(self, desk: Desk, runner: web.AppRunner) -> None:
        self._desk = desk
        self._runner = runner

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return self._desk.books.url

    @property
    def books(self) -> Books:
        """Everything that the account holds, for tests in the same process."""
        return self._desk.books

    def set_webhook_url(self, url: str | None) -> None:
        """Where events go from now on; None for nowhere."""
        endpoints.set_default_url(self._desk.books, url)
        self._desk.changed()

    async def close(self) -> None:
        """Stop serving and delivering."""
        self._desk.faults.clear()
        await self._desk.courier.close()
        await self._runner.cleanup()


async def start_stripe_sandbox(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str = "sk_test_sandbox",
    webhook_secret: str = "whsec_sandbox",  # noqa: S107 - the sandbox's own, which guards nothing
    webhook_url: str | None = None,
    state_file: Path | None = None,
    seed: str | None = None,
) -> StripeSandbox:
    """Serve a Stripe account of our own.

    With `state_file` the account survives a restart. A fixed `seed` makes the same calls give the same ids.
    """
    books, faults = Books(seed or new_seed()), Faults()
    runner = web.AppRunner(web.Application(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)

    def changed() -> None:
        if state_file is not None:
            books.save(state_file)

    keys = Keys(books)
    courier = Courier(books, faults, changed=changed)
    api = Api(books, faults, keys, api_key=api_key, changed=changed)
    desk = Desk(books, faults, keys, api, courier, changed)
    runner.app.add_routes(control_routes(desk))
    runner.app.add_routes(_page_routes(desk))
    runner.app.router.add_route("*", "/v1/{path:.*}", api.handle)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await courier.close()
        await runner.cleanup()
        raise
    books.url = f"http://{host}:{runner.addresses[0][1]}"
    books.load(state_file)
    endpoints.set_default_endpoint(books, url=webhook_url, secret=webhook_secret)
    books.on_event = courier.post
    courier.resume()
    return StripeSandbox(desk, runner)


def _page_routes(desk: Desk) -> list[web.RouteDef]:
    async def show(request: web.Request) -> web.Response:
        page = hosted_page(_invoice(desk, request), token=request.match_info["token"])
        return web.Response(text=page, content_type="text/html")

    async def pay(request: web.Request) -> web.Response:
        invoice = _invoice(desk, request)
        try:
            settling.receive(desk.books, invoice)
        except Refusal as refusal:
            return web.Response(text=refusal.message, status=HTTPStatus.CONFLICT)
        desk.changed()
        return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": f"/i/{request.match_info['token']}"})

    async def download(request: web.Request) -> web.Response:
        invoice = _invoice(desk, request)
        disposition = f'inline; filename="invoice-{invoice["number"]}.pdf"'
        headers = {"Content-Disposition": disposition}
        return web.Response(body=invoice_pdf(invoice), content_type="application/pdf", headers=headers)

    handlers: list[tuple[str, str, Callable[[web.Request], Awaitable[web.Response]]]] = [
        ("GET", "/i/{token}", show),
        ("POST", "/i/{token}/pay", pay),
        ("GET", "/i/{token}/pdf", download),
    ]
    return [web.route(method, path, handler) for method, path, handler in handlers]


def _invoice(desk: Desk, request: web.Request) -> Object:
    token = request.match_info["token"]
    invoice_id = desk.books.tokens.get(token)
    if invoice_id is None or desk.books.private[invoice_id]["token"] != token:
        raise web.HTTPNotFound(text="This link has expired.")
    return desk.books.find("invoice", invoice_id)
