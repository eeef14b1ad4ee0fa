"""`serve`: the gRPC server, until it is told to stop."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvloop

from server.app import running
from server.database import embedded
from server.database.migrate import migrate
from server.environment import load_settings
from server.logs import configure_logging
from server.metrics_page import metrics_page
from server.settings import Settings

_log = structlog.get_logger(__name__)


def serve() -> None:
    """Serve with the environment's settings; ends on SIGTERM and SIGINT, after the drain."""
    settings = load_settings(os.environ)
    configure_logging(level=settings.log.level, style=settings.log.format)
    with database(settings) as url:
        uvloop.run(_serve(settings, url))


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


async def _serve(settings: Settings, url: str) -> None:
    async with metrics_page(settings.metrics.listen), running(settings, database_url=url) as server:
        _log.info("listening", address=settings.listen, port=server.port)
        await until_told_to_stop()
        _log.info("draining")


def _prepare(settings: Settings, url: str) -> None:
    if not settings.database.migrate:
        return
    owner = settings.database.owner_url
    for migration in migrate(owner.get_secret_value() if owner else url):
        _log.info("migrated", version=migration.version, name=migration.name)
