"""`serve`: runs the gRPC server until SIGTERM or SIGINT."""

import argparse
import asyncio
import gc
import os
import signal
import sys
from contextlib import AsyncExitStack

import structlog
import uvloop

from server.api.server import pinned_polling_thread
from server.cli.database import database, refuse_old_schema
from server.cli.workers import Supervisor, serve_metrics, wait_until_orphaned
from server.composition import running
from server.environment import load_settings
from server.logs import configure_logging, log_unhandled
from server.providers.console import Console
from server.settings import Settings

_log = structlog.get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--workers", type=int, help="processes that share the port (PULSA_WORKERS)")
    parser.add_argument("--worker", type=int, metavar="SUPERVISOR", help=argparse.SUPPRESS)


def serve(arguments: argparse.Namespace) -> None:
    """Serve with the settings of the environment; return after SIGTERM or SIGINT and the drain."""
    given = {} if arguments.workers is None else {"PULSA_WORKERS": str(arguments.workers)}
    settings = load_settings(os.environ | given)
    configure_logging(level=settings.log.level, style=settings.log.format)
    with database(settings) as url:
        if settings.workers > 1 and arguments.worker is None:
            Supervisor(settings, url).run()
        else:
            uvloop.run(_serve(settings, url, supervisor=arguments.worker))


async def wait_for_stop_signal() -> None:
    """Return on SIGTERM or SIGINT."""
    stop_requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_requested.set)
    await stop_requested.wait()


def tune_garbage_collector() -> None:
    """Exclude all current objects from garbage collection, and collect later ones in small portions.

    For a process that has created its long-lived objects. With the defaults the collector traverses every object of the
    process repeatedly: about 6 % of the processor's time in a profile of a busy server. Each call leaves about seven
    gRPC objects in a cycle, which only the collector frees; 50,000 of them cost a pause of 90 ms. A threshold of 2,000
    started a collection on every burst of calls, which cost GetBalance about a tenth.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


async def _serve(settings: Settings, url: str, *, supervisor: int | None) -> None:
    asyncio.get_running_loop().set_exception_handler(log_unhandled)
    serve_metrics(settings.metrics.listen)
    console = Console(sys.stdout) if settings.channel.console else None
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(settings, database_url=url, console=console))
        if settings.pin_polling_thread:
            await stack.enter_async_context(pinned_polling_thread())
        tune_garbage_collector()
        _log.info("listening", address=settings.listen, port=server.port)
        ends = [asyncio.ensure_future(wait_for_stop_signal()), asyncio.ensure_future(refuse_old_schema(url))]
        if supervisor is not None:
            ends.append(asyncio.ensure_future(wait_until_orphaned(supervisor)))
        ended, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        _log.info("draining")
        for end in ended:
            end.result()  # raises what refuse_old_schema has found
