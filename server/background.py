"""Tasks in the background: a failure is logged with its kind, and the work begins again after a pause.

Nobody awaits such a task: without this, an error, or a cancellation that leaks out of a library, would end it unseen.
Nor may it outlive its own cancellation: in Python 3.11 asyncio.wait_for, with which psycopg's pool waits, swallows one
that comes together with its result.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from prometheus_client import Gauge

from server.errors import DomainError
from server.logs import safe_traceback

LAST_SUCCESS: Final = Gauge(
    "pulsa_job_last_success_timestamp_seconds",
    "When a periodic job last ended without an error, on any replica if one at a time runs it (0: never): Unix time.",
    ["job"],
    multiprocess_mode="max",
)
_PAUSE_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


class Countdown:
    """Seconds that several steps share, the last of which has at least a few of its own."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end: float | None = None

    def start(self, *, after: float = 0.0) -> None:
        """Begin to count, in so many seconds."""
        self._end = time.monotonic() + after + self._seconds

    def left(self, *, least: float) -> float:
        """The seconds that are left: `least` when fewer are, all of them before it began."""
        return self._seconds if self._end is None else max(self._end - time.monotonic(), least)


async def until_done(
    name: str, work: Callable[[], Awaitable[object]], *, pause_seconds: float = _PAUSE_SECONDS
) -> None:
    """Run the work until it returns: after a failure, which is logged, again after `pause_seconds`."""
    while True:
        if await _succeeds(name, work):
            return
        await asyncio.sleep(pause_seconds)


async def repeat(name: str, interval_seconds: float, work: Callable[[], Awaitable[float]]) -> None:
    """Run the work after each interval, for ever; failures are logged.

    The work returns when it last succeeded, in Unix time, for the metric.
    """
    last_success = LAST_SUCCESS.labels(name)

    async def once() -> None:
        last_success.set(await work())

    while True:
        await asyncio.sleep(interval_seconds)
        await _succeeds(name, once)


async def _succeeds(name: str, work: Callable[[], Awaitable[object]]) -> bool:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    succeeded = False
    try:
        await work()
        succeeded = True
    except asyncio.CancelledError:
        if task.cancelling():
            raise
        _log.error("job failed", job=name, why="CancelledError")  # something that the work awaited was cancelled
    except DomainError as error:
        _log.warning("job failed", job=name, reason=error.reason, why=type(error.__cause__ or error).__name__)
    except Exception as error:  # noqa: BLE001 - no failure may end the task; the line logs the error
        _log.error("job failed", job=name, why=type(error).__name__, trace=safe_traceback(error))
    if task.cancelling():
        raise asyncio.CancelledError
    return succeeded
