"""The servers that are measured, each in a process of its own: `python -m tests.bench.serve KIND`.

Settings come from PULSA_… as for `serve`; except that messages go to a console provider that prints nothing. The
first line of output is the port. With PULSA_WORKERS above 1 `pulsa` is a supervisor, and each worker prints the port.
"""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import uvloop

from server.api.server import ListenOptions, pinned_polling_thread
from server.cli.serve import tune_garbage_collector, wait_for_stop_signal
from server.cli.workers import Supervisor
from server.composition import running
from server.environment import load_settings
from server.logs import configure_logging
from server.providers.console import Console
from server.settings import Settings
from tests.bench.plain import plain_methods

EMPTY_PATH = "/bench.Empty/Call"

Method = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


async def _serve(kind: str, settings: Settings) -> None:
    async with _KINDS[kind](settings) as port:
        tune_garbage_collector()
        print(port, flush=True)  # noqa: T201 - the starting process waits for it
        await wait_for_stop_signal()


@asynccontextmanager
async def _pulsa(settings: Settings) -> AsyncIterator[int]:
    """The product with every feature on; PULSA_PIN_POLLING_THREAD as for `serve`."""
    console = Console(None)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            running(settings, database_url=_database_url(settings), console=console)
        )
        if settings.pin_polling_thread:
            await stack.enter_async_context(pinned_polling_thread())
        yield server.port


@asynccontextmanager
async def _empty(settings: Settings) -> AsyncIterator[int]:
    """The framework alone: the same server without an interceptor, and a method that does nothing."""

    async def nothing(_request: bytes, _context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return b""

    async with _listen(settings, {EMPTY_PATH: nothing}) as port:
        yield port


@asynccontextmanager
async def _empty_pinned(settings: Settings) -> AsyncIterator[int]:
    """The empty call with gRPC's polling thread pinned to the event loop's processor, as in the product."""
    async with _empty(settings) as port, pinned_polling_thread():
        yield port


@asynccontextmanager
async def _plain(settings: Settings) -> AsyncIterator[int]:
    """The baseline: one transaction of plain statements per call."""
    async with plain_methods(settings, _database_url(settings)) as methods, _listen(settings, methods) as port:
        yield port


@asynccontextmanager
async def _listen(settings: Settings, methods: Mapping[str, Method]) -> AsyncIterator[int]:
    """A gRPC server with the product's options and without its interceptor."""
    server = grpc.aio.server(options=ListenOptions(address=settings.listen).options)
    for path, method in methods.items():
        _, service, name = path.split("/")
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(method)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
    port = server.add_insecure_port(settings.listen)
    await server.start()
    yield port
    await server.stop(None)


_KINDS = {"pulsa": _pulsa, "empty": _empty, "beside": _empty_pinned, "plain": _plain}


def _database_url(settings: Settings) -> str:
    if settings.database.url is None:
        sys.exit("PULSA_DATABASE_URL: is required")
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
