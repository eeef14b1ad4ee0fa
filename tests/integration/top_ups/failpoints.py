"""Simulated crashes of a server process, and its restart.

A crash is a task that is held at a failpoint for good: nothing after that point happens, no cleanup either, as with
kill -9.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta

from tests.integration.top_ups.driver import Replica, TopUpDriver

Work = Callable[[TopUpDriver, str], Coroutine[None, None, None]]
"""What a process does for an organization."""


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
    await _end(*replica.automatic._tasks, *replica.top_ups._tasks.values(), *replica.inbox._tasks)
    driver.start(failpoint=crash.failpoint if crash else None)


async def _crash(driver: TopUpDriver, organization_id: str, crash: SimulatedCrash, work: Work) -> bool:
    """Run the work in a replica that may crash, then restart. Returns whether it crashed before the work was done."""
    replica = driver.start(failpoint=crash.failpoint)
    await run_until_crash(work(driver, organization_id), crash)
    await restart(driver, replica)
    return crash.happened.is_set()


async def crash_at_every_failpoint(
    driver: TopUpDriver, work: Work, *, before: Work | None = None, after: Callable[[str], Awaitable[None]]
) -> list[str]:
    """Crash at the first failpoint of the work, then, for another organization, at the second, and so on.

    Returns the names of all failpoints.
    """
    # No webhook arrives: only the periodic jobs find the unfinished work.
    driver.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    points = 0
    while True:
        organization_id, crash = f"organization-{points}", SimulatedCrash(passes=points)
        driver.clock.ahead = timedelta(0)
        if before:
            await before(driver, organization_id)
        crashed = await _crash(driver, organization_id, crash, work)
        await after(organization_id)
        if not crashed:
            return crash.points
        points += 1


async def _end(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    pending = set(tasks)
    while pending:
        # More than once: wait_for, which the pool uses, may lose a cancellation that comes together with its result
        # (until Python 3.12).
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
