"""The sidecar's HTTP server: the only address that the internet reaches. It has no database and no Stripe key."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from server.logs import safe_traceback
from server.webhook.relay import Relay

PATH: Final = "/stripe/webhook"
_MAXIMUM_SIGNATURE_LENGTH = 4096

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SidecarLimits:
    """The limits on what callers may use. Every caller is untrusted until the server has verified the signature."""

    body_bytes: int = 262_144
    """A larger body is answered 413."""
    header_seconds: float = 10.0
    """The time for all headers of a request, and until an idle connection is closed."""
    body_seconds: float = 10.0
    """The time for the body of a request; then it is answered 408."""
    requests_at_once: int = 64
    """Webhooks that are being read or relayed; a further one is answered 503."""
    connections_at_once: int = 512
    """A further connection closes the oldest one whose webhook is not being read or relayed."""


class WebhookReceiver:
    """Receives webhooks and relays them. A webhook that cannot be relayed is answered 503, and Stripe sends it again.

    Stripe retries for three days: docs.stripe.com/webhooks, "Retry behavior".
    """

    def __init__(self, relay: Relay, limits: SidecarLimits) -> None:
        self._relay = relay
        self._limits = limits
        self.active: set[RequestHandler] = set()
        """The connections whose webhook is being read or relayed."""

    def application(self) -> web.Application:
        """The application, with two routes: the webhook and a health check."""
        application = web.Application(client_max_size=self._limits.body_bytes, middlewares=[_hide_errors])
        application.add_routes([web.post(PATH, self._receive), web.get("/healthz", _healthz)])
        return application

    async def _receive(self, request: web.Request) -> web.Response:
        if len(self.active) >= self._limits.requests_at_once:
            return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)
        self.active.add(request.protocol)
        try:
            return web.Response(status=await self._read_and_relay(request))
        finally:
            self.active.discard(request.protocol)

    async def _read_and_relay(self, request: web.Request) -> HTTPStatus:
        signature = request.headers.get("Stripe-Signature", "")
        if not signature.isascii() or not 0 < len(signature) <= _MAXIMUM_SIGNATURE_LENGTH:
            return HTTPStatus.BAD_REQUEST
        if (request.content_length or 0) > self._limits.body_bytes:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                payload = await request.read()  # raises a 413 beyond the application's client_max_size
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT
        except web.RequestPayloadError:
            return HTTPStatus.BAD_REQUEST
        return await self._relay.record(payload, signature)


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


@web.middleware
async def _hide_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Log an unexpected exception and answer 503 without its text."""
    try:
        return await handler(request)
    except (web.HTTPException, ConnectionError):
        raise
    except Exception as error:  # noqa: BLE001 - logged, and Stripe sends the webhook again
        _log.error("the sidecar failed", trace=safe_traceback(error))
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)


_quiet = logging.getLogger("server.webhook.http")
_quiet.setLevel(logging.CRITICAL + 1)  # aiohttp would log malformed requests verbatim


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A running sidecar."""

    port: int
    _listener: asyncio.Server
    _runner: web.AppRunner
    _relay: Relay

    async def stop(self) -> None:
        """Stop listening, answer the webhooks that are being relayed, and close all connections."""
        self._listener.close()
        await self._runner.cleanup()
        await self._relay.close()


async def start_sidecar(relay: Relay, *, host: str, port: int, limits: SidecarLimits | None = None) -> Sidecar:
    """Start a sidecar that listens on host and port (0: a free port). Stopping it closes the relay too."""
    limits = limits or SidecarLimits()
    receiver = WebhookReceiver(relay, limits)
    runner = web.AppRunner(
        receiver.application(),
        access_log=None,
        logger=_quiet,
        auto_decompress=False,  # the signature covers the bytes as sent
        keepalive_timeout=limits.header_seconds,
        lingering_time=2.0,
        max_headers=64,
        read_bufsize=16_384,
        shutdown_timeout=30.0,
    )
    await runner.setup()
    http = runner.server
    if http is None:
        raise RuntimeError("aiohttp has no server after its setup")

    def accept() -> asyncio.BaseProtocol:
        connections = http.connections
        if len(connections) >= limits.connections_at_once:
            idle = (connection for connection in connections if connection not in receiver.active)
            next(idle, connections[0]).force_close()
        return http()

    listener = await asyncio.get_running_loop().create_server(accept, host, port)
    return Sidecar(listener.sockets[0].getsockname()[1], listener, runner, relay)
