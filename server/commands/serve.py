"""`serve`: the gRPC server, until it is told to stop."""

import argparse
import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import structlog
import uvloop

from server.app import running
from server.commands.workers import Supervisor, until_orphaned
from server.database import embedded
from server.database.migrate import migrate
from server.environment import SettingsError, load_settings
from server.logs import configure_logging, tell_unforeseen
from server.metrics_page import serve_metrics
from server.rpc.poller import poller_beside_loop
from server.settings import Settings

_log = structlog.get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many processes."""
    parser.add_argument("--workers", type=int, help="processes that share the port (PULSA_WORKERS)")
    parser.add_argument("--worker", type=int, metavar="SUPERVISOR", help=argparse.SUPPRESS)


def serve(arguments: argparse.Namespace) -> None:
    """Serve with the environment's settings; ends on SIGTERM and SIGINT, after the drain."""
    given = {} if arguments.workers is None else {"PULSA_WORKERS": str(arguments.workers)}
    settings = load_settings(os.environ | given)
    configure_logging(level=settings.log.level, style=settings.log.format)
    with database(settings) as url:
        if settings.workers > 1 and arguments.worker is None:
            Supervisor(settings, url).run()
        else:
            uvloop.run(_serve(settings, url, supervisor=arguments.worker))


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """The URL of the configured PostgreSQL, or of an embedded one that runs meanwhile; its schema is up to date."""
    if settings.database.url is not None:
        url = settings.database.url.get_secret_value()
        _prepare(settings, url)
        yield url
        return
    with embedded.start(settings.data / "postgres") as postgres:
        _prepare(settings, postgres.url)
        yield postgres.url


async def until_told_to_stop() -> None:
    """Return on SIGTERM or SIGINT."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()


def calm_garbage_collector() -> None:
    """Let it never again look at what exists now, and at the rest often: for a process that has built all it keeps.

    Left to its defaults the collector walks every object of the process again and again; a profile of a busy server
    showed it at about 6 % of the processor's time. Of each call gRPC leaves about seven objects in a cycle, which only
    the collector frees: for 50,000 of them that is a pause of 90 ms. With 2,000 every wave of calls that comes and goes
    set it off as well, which cost GetBalance about a tenth.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


async def _serve(settings: Settings, url: str, *, supervisor: int | None) -> None:
    asyncio.get_running_loop().set_exception_handler(tell_unforeseen)
    serve_metrics(settings.metrics.listen)
    async with running(settings, database_url=url) as server, poller_beside_loop():
        calm_garbage_collector()
        _log.info("listening", address=settings.listen, port=server.port)
        ends = [asyncio.ensure_future(until_told_to_stop())]
        if supervisor is not None:
            ends.append(asyncio.ensure_future(until_orphaned(supervisor)))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        _log.info("draining")


def _prepare(settings: Settings, url: str) -> None:
    if not settings.database.migrate:
        return
    owner = settings.database.owner_url
    try:
        migrations = migrate(owner.get_secret_value() if owner else url)
    except (psycopg.OperationalError, ValueError) as error:
        name = "PULSA_DATABASE_OWNER_URL" if owner else "PULSA_DATABASE_URL"
        raise SettingsError(f"{name}: {str(error).splitlines()[0]}") from error
    for migration in migrations:
        _log.info("migrated", version=migration.version, name=migration.name)
