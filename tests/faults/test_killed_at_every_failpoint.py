"""Kill -9 after each commit and each Stripe call of a purchase, a payment and a cancellation, in real processes.

tests/integration/top_ups/test_crashes.py does the same within one process, where only the periodic jobs recover.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path

from pulsa.credit.v1.top_up_pb2 import TOP_UP_STATUS_CANCELED, TOP_UP_STATUS_OPEN

from tests.acceptance.deployment import Deployment, deployed
from tests.databases import Databases
from tests.faults.dev_server import open_dev_server, wait_until_idle
from tests.waiting import until

CONCURRENT_RUNS = 3

Step = Callable[[Deployment], Awaitable[object]]


async def order(pulsa: Deployment) -> None:
    await pulsa.order()


async def buy(pulsa: Deployment) -> None:
    await pulsa.pay(await pulsa.order())
    await pulsa.wait_for_balance(1000)


async def cancel(pulsa: Deployment) -> None:
    [top_up] = (await pulsa.call("ListTopUps")).top_ups

    async def is_canceled() -> bool:
        answer = await pulsa.call("CancelTopUp", top_up_id=top_up.top_up_id)
        return bool(answer.top_up.status == TOP_UP_STATUS_CANCELED)

    await until(is_canceled)


async def do_nothing(_pulsa: Deployment) -> None:
    pass


async def assert_result(pulsa: Deployment, *, invoice: str, credits: int) -> None:
    """There is one invoice in this state, credited once or not at all, and a new top-up can be opened."""
    invoices = (await pulsa.control("GET", "invoices"))["invoices"]
    assert [each["status"] for each in invoices] == [invoice]
    assert await pulsa.balance() == credits
    audit = await pulsa.call("VerifyLedger")
    assert (audit.holds, audit.entry_count) == (True, 1 if credits else 0)
    assert (await pulsa.order()).status == TOP_UP_STATUS_OPEN


class CrashScenario:
    """A step that is killed at each of its failpoints, the step before it, and the check of its result."""

    def __init__(self, databases: Databases, folder: Path, step: Step, *, before: Step, after: Step) -> None:
        self._databases, self._folder = databases, folder
        self._step, self._before, self._after = step, before, after
        self._slots = asyncio.Semaphore(CONCURRENT_RUNS)

    async def kill_at_every_failpoint(self, only: Collection[str] | None = None) -> Collection[str]:
        """Run the step once for each time that it reaches each failpoint, and kill the process there.

        With `only` the first time that it reaches these. Returns the failpoints.
        """
        counts = await self._count_failpoints()
        async with asyncio.TaskGroup() as group:
            for failpoint, count in counts.items():
                if only is not None and failpoint not in only:
                    continue
                for occurrence in range(1, count + 1 if only is None else 2):
                    group.create_task(self._kill_at(failpoint, occurrence))
        return counts

    async def _count_failpoints(self) -> Counter[str]:
        """How often the step reaches each failpoint when nothing is killed."""
        counts: Counter[str] = Counter()

        async def count(failpoint: str) -> None:
            counts[failpoint] += 1

        with self._databases.new() as url:
            async with deployed(url, self._folder, failpoint=count) as pulsa:
                await self._before(pulsa)
                await wait_until_idle(pulsa, url)
                counts.clear()
                await self._step(pulsa)
                await wait_until_idle(pulsa, url)
        return counts

    async def _kill_at(self, failpoint: str, occurrence: int) -> None:
        setting = f"{failpoint}#{occurrence}"
        folder = self._folder / setting
        folder.mkdir()
        async with self._slots, AsyncExitStack() as stack:
            url = stack.enter_context(self._databases.new())
            dev_server = await stack.enter_async_context(open_dev_server(url, folder))
            if self._before is not do_nothing:
                await dev_server.start()
                await self._before(dev_server)
                await wait_until_idle(dev_server, url)
                await dev_server.kill()
            await dev_server.start(setting)
            first = dev_server.processes[-1]
            await self._step(dev_server)
            await wait_until_idle(dev_server, url)
            # A webhook may do the work of a later call, so that only the first occurrence is certain.
            assert dev_server.processes[-1] is not first or occurrence > 1, f"{failpoint} was not reached"
            await self._after(dev_server)


async def test_a_purchase_killed_at_any_failpoint_ends_with_one_invoice_credited_once(
    databases: Databases, tmp_path: Path
) -> None:
    def bought(pulsa: Deployment) -> Awaitable[None]:
        return assert_result(pulsa, invoice="paid", credits=1000)

    failpoints = await CrashScenario(
        databases, tmp_path, buy, before=do_nothing, after=bought
    ).kill_at_every_failpoint()

    assert {"commit create", "stripe finalize", "commit event", "commit apply invoice"} <= set(failpoints)


async def test_a_cancellation_killed_at_any_failpoint_ends_with_a_void_invoice(
    databases: Databases, tmp_path: Path
) -> None:
    def canceled(pulsa: Deployment) -> Awaitable[None]:
        return assert_result(pulsa, invoice="void", credits=0)

    failpoints = await CrashScenario(
        databases, tmp_path, cancel, before=order, after=canceled
    ).kill_at_every_failpoint()

    assert {"commit cancel", "stripe void", "commit event", "commit apply invoice"} <= set(failpoints)
