"""Kill -9 after each commit and each Stripe call of a purchase, its payment and its cancellation, in real processes.

tests/integration/top_ups/test_crashes.py does the same within one process, where the watch alone has to recover.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path

from pulsa.credit.v1.top_up_pb2 import TOP_UP_STATUS_CANCELED, TOP_UP_STATUS_OPEN

from tests.acceptance.deployment import Deployment, deployed
from tests.faults.machine import fresh_database, is_quiet, open_machine
from tests.waiting import until

MACHINES = 3
"""That run at once."""

Scene = Callable[[Deployment], Awaitable[object]]


async def buy(pulsa: Deployment) -> None:
    await pulsa.pay(await pulsa.order())
    await pulsa.has_balance(1000)


async def cancel(pulsa: Deployment) -> None:
    [top_up] = (await pulsa.call("ListTopUps")).top_ups

    async def is_canceled() -> bool:
        answer = await pulsa.call("CancelTopUp", top_up_id=top_up.top_up_id)
        return bool(answer.top_up.status == TOP_UP_STATUS_CANCELED)

    await until(is_canceled)


async def nothing(_pulsa: Deployment) -> None:
    pass


async def has_ended(pulsa: Deployment, *, invoice: str, credits: int) -> None:
    """One invoice, in this state, and one credit or none; and the place is free."""
    invoices = (await pulsa.control("GET", "invoices"))["invoices"]
    assert [each["status"] for each in invoices] == [invoice]
    assert await pulsa.balance() == credits
    audit = await pulsa.call("VerifyLedger")
    assert (audit.holds, audit.entry_count) == (True, 1 if credits else 0)
    assert (await pulsa.order()).status == TOP_UP_STATUS_OPEN


class Play:
    """A scene, what comes before it, and how it must end."""

    def __init__(self, postgres: str, folder: Path, scene: Scene, *, before: Scene, after: Scene) -> None:
        self._postgres, self._folder = postgres, folder
        self._scene, self._before, self._after = scene, before, after
        self._places = asyncio.Semaphore(MACHINES)

    async def stops_everywhere(self) -> Collection[str]:
        """Play it once for each time that a rehearsal reaches each point, and stop there; the points."""
        points = await self._rehearse()
        async with asyncio.TaskGroup() as group:
            for point, times in points.items():
                for time in range(1, times + 1):
                    group.create_task(self._stops_at(point, time))
        return points

    async def _rehearse(self) -> Counter[str]:
        """How often it reaches each point."""
        points: Counter[str] = Counter()

        async def count(point: str) -> None:
            points[point] += 1

        with fresh_database(self._postgres, "rehearsal") as url:
            async with deployed(url, self._folder, reached=count) as pulsa:
                await self._before(pulsa)
                await is_quiet(pulsa, url)
                points.clear()
                await self._scene(pulsa)
                await is_quiet(pulsa, url)
        return points

    async def _stops_at(self, point: str, time: int) -> None:
        stop_at = f"{point}#{time}"
        folder = self._folder / stop_at
        folder.mkdir()
        async with self._places, AsyncExitStack() as stack:
            url = stack.enter_context(fresh_database(self._postgres, stop_at))
            machine = await stack.enter_async_context(open_machine(url, folder))
            if self._before is not nothing:
                await machine.start()
                await self._before(machine)
                await is_quiet(machine, url)
                await machine.kill()
            await machine.start(stop_at)
            first = machine.processes[-1]
            await self._scene(machine)
            await is_quiet(machine, url)
            # A webhook may have done what a step then need not do: only the first time is sure to come.
            assert machine.processes[-1] is not first or time > 1, f"it did not stop at {point}"
            await self._after(machine)


async def test_a_purchase_killed_anywhere_ends_with_one_invoice_and_one_credit(postgres: str, tmp_path: Path) -> None:
    def bought(pulsa: Deployment) -> Awaitable[None]:
        return has_ended(pulsa, invoice="paid", credits=1000)

    points = await Play(postgres, tmp_path, buy, before=nothing, after=bought).stops_everywhere()

    assert {"commit create", "stripe finalize", "commit event", "commit settle"} <= set(points)


async def test_a_cancellation_killed_anywhere_ends_with_a_void_invoice(postgres: str, tmp_path: Path) -> None:
    def canceled(pulsa: Deployment) -> Awaitable[None]:
        return has_ended(pulsa, invoice="void", credits=0)

    points = await Play(postgres, tmp_path, cancel, before=Deployment.order, after=canceled).stops_everywhere()

    assert {"commit cancel", "stripe void", "commit event", "commit settle"} <= set(points)
