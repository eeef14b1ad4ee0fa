"""Simulated crashes of a server process, and its restart.

A crash is a task that is held at a failpoint for good: nothing after that point happens, no cleanup either, as with
kill -9.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field

from tests.integration.top_ups.driver import Replica, TopUpDriver


@dataclass(slots=True)
class SimulatedCrash:
    """Holds every task that reaches a failpoint after the first `passes`; None holds no task."""

    passes: int | None = None
    points: list[str] = field(default_factory=list)
    """The failpoints that were reached, in order."""
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    async def failpoint(self, point: str) -> None:
        self.points.append(point)
        if self.passes is not None and len(self.points) > self.passes:
            self.happened.set()
            await asyncio.Event().wait()


async def run_until_crash(work: Coroutine[None, None, None], crash: SimulatedCrash) -> None:
    """Return when the work is done or the crash has happened. Raises what the work raises."""
    working = asyncio.create_task(work)
    crashing = asyncio.create_task(crash.happened.wait())
    await asyncio.wait({working, crashing}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        crashing.cancel()
        await working
    else:
        await _end(working)


async def restart(driver: TopUpDriver, replica: Replica, crash: SimulatedCrash | None = None) -> None:
    """End everything of the old replica and start a new one, which may crash in turn."""
    await _end(*replica.top_ups._tasks, *replica.inbox._tasks)
    driver.start(failpoint=crash.failpoint if crash else None)


async def _end(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    pending = set(tasks)
    while pending:
        # More than once: wait_for, which the pool uses, may lose a cancellation that comes together with its result
        # (until Python 3.12).
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
