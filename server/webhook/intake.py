"""What the sidecar does with a request: reads a bounded body in bounded time, relays it, answers with a bare status."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from server.webhook.relay import Relay

PATH: Final = "/stripe/webhook"
_LONGEST_SIGNATURE = 4096

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What strangers may use. Until the server has checked the signature, every caller is one."""

    body_bytes: int = 262_144
    header_seconds: float = 10.0
    """For all headers of a request; also how long an idle connection stays."""
    body_seconds: float = 10.0
    requests_at_once: int = 64
    """Webhooks being read or relayed; a further one is answered 503."""
    connections_at_once: int = 512
    """When a further one comes, the oldest that is not being served is closed: who does nothing gives way."""


class Intake:
    """Takes webhooks in. What cannot be served is answered 503: Stripe comes again, for three days.

    See docs.stripe.com/webhooks, "Retry behavior".
    """

    def __init__(self, relay: Relay, limits: Limits) -> None:
        self._relay = relay
        self._limits = limits
        self.served: set[RequestHandler] = set()
        """The connections whose webhook is being read or relayed."""

    def application(self) -> web.Application:
        """The routes: the webhook and a health check; all else is not found."""
        application = web.Application(client_max_size=self._limits.body_bytes, middlewares=[_guard])
        application.add_routes([web.post(PATH, self._receive), web.get("/healthz", _healthz)])
        return application

    async def _receive(self, request: web.Request) -> web.Response:
        if len(self.served) >= self._limits.requests_at_once:
            return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)
        self.served.add(request.protocol)
        try:
            return web.Response(status=await self._relayed(request))
        finally:
            self.served.discard(request.protocol)

    async def _relayed(self, request: web.Request) -> HTTPStatus:
        signature = request.headers.get("Stripe-Signature", "")
        if not signature.isascii() or not 0 < len(signature) <= _LONGEST_SIGNATURE:
            return HTTPStatus.BAD_REQUEST
        if (request.content_length or 0) > self._limits.body_bytes:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                payload = await request.read()  # stops at the application's client_max_size with a 413
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT
        except web.RequestPayloadError:
            return HTTPStatus.BAD_REQUEST
        return await self._relay.record(payload, signature)


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Show nothing of ours when something happens that nobody foresaw."""
    try:
        return await handler(request)
    except (web.HTTPException, ConnectionError):
        raise
    except Exception:  # noqa: BLE001 - logged, and Stripe comes again
        _log.exception("the sidecar failed")
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)
