"""A server process that stops for good at some point, and the one that takes its place.

A stop is a task that never goes on: nothing after the point happens, no cleanup either, as with kill -9.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field

from tests.integration.top_ups.shop import Desk, Shop


@dataclass(slots=True)
class Stop:
    """Lets `passes` points pass and holds whoever reaches a later one, for ever; None lets all pass."""

    passes: int | None = None
    points: list[str] = field(default_factory=list)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def reached(self, point: str) -> None:
        self.points.append(point)
        if self.passes is not None and len(self.points) > self.passes:
            self.stopped.set()
            await asyncio.Event().wait()


async def play(scene: Coroutine[None, None, None], stop: Stop) -> None:
    """Return when the scene is over or its process has stopped; what the scene raised is raised."""
    playing = asyncio.create_task(scene)
    stopping = asyncio.create_task(stop.stopped.wait())
    await asyncio.wait({playing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if playing.done():
        stopping.cancel()
        await playing
    else:
        await _end(playing)


async def replace_process(shop: Shop, desk: Desk, stop: Stop | None = None) -> None:
    """Nothing of the old process goes on; a new one starts, which may stop again."""
    await _end(*desk.top_ups._tasks, *desk.inbox._tasks)
    shop.start(reached=(stop or Stop()).reached)


async def _end(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    pending = set(tasks)
    while pending:
        # More than once: wait_for, under the pool, may drop a cancellation that meets what it waited for (until 3.12).
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
