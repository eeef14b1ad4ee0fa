"""Tasks in the background: whatever ends their work, it is logged and begins again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import chain
from itertools import repeat as forever

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from server.background import Countdown, repeat, until_done
from server.errors import DatabaseUnavailable
from tests.waiting import until

ERRORS = (ValueError("secret"), DatabaseUnavailable(retry_after_seconds=1.0), asyncio.CancelledError())
LINES = [
    ("job failed", "error", "ValueError"),
    ("job failed", "warning", "DatabaseUnavailable"),
    ("job failed", "error", "CancelledError"),
]


class Work:
    """Fails with each of the errors, then succeeds."""

    def __init__(self) -> None:
        self._errors: Iterator[BaseException | None] = chain(ERRORS, forever(None))
        self.successes = 0

    async def __call__(self) -> float:
        if error := next(self._errors):
            raise error
        self.successes += 1
        return 1_800_000_000.0


async def test_work_that_fails_is_logged_and_begins_again_until_it_returns() -> None:
    work = Work()
    with capture_logs() as lines:
        await asyncio.create_task(until_done("test", work, pause_seconds=0))

    assert work.successes == 1
    assert [(line["event"], line["log_level"], line["why"]) for line in lines] == LINES
    assert "secret" not in str(lines)


async def test_a_repeated_job_outlives_its_failures_and_publishes_its_last_success() -> None:
    work = Work()
    with capture_logs() as lines:
        job = asyncio.create_task(repeat("test job", 0.001, work))
        await until(lambda: work.successes >= 3)
    job.cancel()
    await asyncio.wait([job])

    assert len(lines) == len(LINES)
    name = "pulsa_job_last_success_timestamp_seconds"
    assert REGISTRY.get_sample_value(name, {"job": "test job"}) == 1_800_000_000.0


@pytest.mark.parametrize("start", [lambda work: until_done("test", work), lambda work: repeat("test", 0.001, work)])
async def test_a_cancelled_task_ends(start: Callable[[Callable[[], Awaitable[float]]], Awaitable[None]]) -> None:
    begun = asyncio.Event()

    async def work() -> float:
        begun.set()
        await asyncio.Event().wait()
        return 0.0

    task = asyncio.ensure_future(start(work))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()


async def test_a_job_ends_although_its_work_swallows_the_cancellation() -> None:
    waits = asyncio.Event()

    async def swallow() -> float:
        waits.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return 0.0

    job = asyncio.create_task(repeat("test job", 0.001, swallow))
    await waits.wait()
    job.cancel()
    await asyncio.wait([job], timeout=20)
    assert job.cancelled()


def test_steps_share_the_seconds_of_a_countdown_and_the_last_has_a_few() -> None:
    drain = Countdown(20)
    before = drain.left(least=2)
    drain.start(after=10)
    begun = drain.left(least=2)
    drain.start(after=-15)
    late = drain.left(least=2)
    drain.start(after=-100)

    assert before == 20
    assert 20 < begun <= 30
    assert 2 < late <= 5
    assert drain.left(least=2) == 2
