"""The one address that the internet reaches: small, without a database and without a Stripe key."""

import asyncio
import logging
from dataclasses import dataclass

from aiohttp import web

from server.webhook.intake import Intake, Limits
from server.webhook.relay import Relay

_quiet = logging.getLogger("server.webhook.http")
_quiet.setLevel(logging.CRITICAL + 1)  # aiohttp would log the junk of strangers, word for word


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A running sidecar."""

    port: int
    _listener: asyncio.Server
    _runner: web.AppRunner
    _relay: Relay

    async def stop(self) -> None:
        """Stop listening, answer the webhooks that are being relayed, and let go of everything."""
        self._listener.close()
        await self._runner.cleanup()
        await self._relay.close()


async def start_sidecar(relay: Relay, *, host: str, port: int, limits: Limits | None = None) -> Sidecar:
    """A sidecar that listens (port 0: a free one) and relays. It owns the relay from now on."""
    limits = limits or Limits()
    intake = Intake(relay, limits)
    runner = web.AppRunner(
        intake.application(),
        access_log=None,
        logger=_quiet,
        auto_decompress=False,  # the signature is over the bytes as sent
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
            idle = (connection for connection in connections if connection not in intake.served)
            next(idle, connections[0]).force_close()
        return http()

    listener = await asyncio.get_running_loop().create_server(accept, host, port)
    return Sidecar(listener.sockets[0].getsockname()[1], listener, runner, relay)
