"""The servers that are measured, each in a process of its own: `python -m tests.bench.serve KIND`.

Settings come from PULSA_… as for `serve`; the difference is that messages go to a console that prints nothing. The
first line of output is the port. With PULSA_WORKERS above 1 `pulsa` is a supervisor, and each worker prints the port.
"""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import grpc
import uvloop

from server.app import running
from server.channels.console import Console
from server.commands.serve import calm_garbage_collector, until_told_to_stop
from server.commands.workers import Supervisor
from server.environment import load_settings
from server.logs import configure_logging
from server.rpc.poller import poller_beside_loop
from server.rpc.serving import Listening
from server.settings import Settings
from tests.bench.plain import plain_methods

EMPTY_PATH = "/bench.Empty/Call"

Method = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


async def _serve(kind: str, settings: Settings) -> None:
    async with _KINDS[kind](settings) as port:
        calm_garbage_collector()
        print(port, flush=True)  # noqa: T201 - what the starter waits for
        await until_told_to_stop()


@asynccontextmanager
async def _pulsa(settings: Settings) -> AsyncIterator[int]:
    """The product, with everything on."""
    console = Console(None)
    async with running(settings, database_url=_database_url(settings), console=console) as server, poller_beside_loop():
        yield server.port


@asynccontextmanager
async def _empty(settings: Settings) -> AsyncIterator[int]:
    """What the framework alone can answer: the same server without a door, and a method that does nothing."""

    async def nothing(_request: bytes, _context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return b""

    async with _listening(settings, {EMPTY_PATH: nothing}) as port:
        yield port


@asynccontextmanager
async def _beside(settings: Settings) -> AsyncIterator[int]:
    """The empty call once more, with gRPC's polling thread beside the event loop, as the product has it."""
    async with _empty(settings) as port, poller_beside_loop():
        yield port


@asynccontextmanager
async def _plain(settings: Settings) -> AsyncIterator[int]:
    """The simplest honest alternative: one transaction of plain statements per call."""
    async with plain_methods(settings, _database_url(settings)) as methods, _listening(settings, methods) as port:
        yield port


@asynccontextmanager
async def _listening(settings: Settings, methods: Mapping[str, Method]) -> AsyncIterator[int]:
    """The framework with the product's options and without its door."""
    server = grpc.aio.server(options=Listening(address=settings.listen).options)
    for path, method in methods.items():
        _, service, name = path.split("/")
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(method)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
    port = server.add_insecure_port(settings.listen)
    await server.start()
    yield port
    await server.stop(None)


_KINDS = {"pulsa": _pulsa, "empty": _empty, "beside": _beside, "plain": _plain}


def _database_url(settings: Settings) -> str:
    if settings.database.url is None:
        sys.exit("PULSA_DATABASE_URL: is needed")
    return settings.database.url.get_secret_value()


def main() -> None:
    """Serve until SIGTERM."""
    settings = load_settings(os.environ)
    configure_logging(level=settings.log.level, style=settings.log.format)
    kind, *worker = sys.argv[1:]
    if settings.workers > 1 and not worker:
        command = [sys.executable, "-m", "tests.bench.serve", kind]
        Supervisor(settings, _database_url(settings), command=command).run()
    else:
        uvloop.run(_serve(kind, settings))


if __name__ == "__main__":
    main()
