"""The batcher: a lone call leaves at once; calls that come while a flush is in flight leave together."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from server.errors import AccountBusy
from server.postgres.batcher import ONE_SHARD, Batcher, Batching, LoopTurn, Shards
from server.postgres.lanes import LOCKED, Locked
from tests.shards import ShardOfEach
from tests.waiting import until

NEVER_SECONDS = 3600.0
NEVER_SLEEPS = LoopTurn(long_seconds=NEVER_SECONDS)  # so that also on a busy machine a batch gathers for 30 turns


class Odd(Exception):
    """The error of an odd number."""


MANY = (20, 22, 24, 26, 28)
"""More calls than are flushed at once after a flush."""


@dataclass
class Doubler:
    """Doubles even numbers and refuses odd ones; each flush ends when the test lets it."""

    batches: list[list[int]] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)
    error: Exception | None = None
    locked: set[int] = field(default_factory=set)
    """Numbers whose rows are locked: they get no answer, and AccountBusy from a flush that may wait."""
    waits: list[bool] = field(default_factory=list)
    batchers: list[Batcher[int, int]] = field(default_factory=list)

    async def flush(self, numbers: Sequence[int], *, wait: bool) -> list[int | Locked | Exception]:
        self.batches.append(list(numbers))
        self.waits.append(wait)
        self.gates.append(asyncio.Event())
        await self.gates[-1].wait()
        if self.error:
            raise self.error
        if wait and self.locked.intersection(numbers):
            raise AccountBusy(retry_after_seconds=1)
        return [self._answer(number) for number in numbers]

    def _answer(self, number: int) -> int | Locked | Exception:
        if number in self.locked:
            return LOCKED
        return Odd() if number % 2 else 2 * number

    def batcher(
        self,
        *,
        size: int = 100,
        linger_seconds: float = 0.0,
        shards: Shards = ONE_SHARD,
        flushes: int = 4,
        busy_seconds: float = NEVER_SECONDS,
    ) -> Batcher[int, int]:
        batching = Batching(size, linger_seconds, shards=shards, flushes=flushes, busy_seconds=busy_seconds)
        self.batchers.append(Batcher(self.flush, batching, turn=NEVER_SLEEPS))
        return self.batchers[-1]

    async def end(self) -> None:
        """End every flush, so that no task is left behind."""
        self.locked.clear()
        for batcher in self.batchers:
            draining = asyncio.create_task(batcher.drain())
            while not draining.done():
                for gate in self.gates:
                    gate.set()
                await asyncio.sleep(0)

    async def end_flush(self) -> None:
        """End the flush, and wait until the next one has begun, if any."""
        self.gates[-1].set()
        await quiet_turns()


async def turns(count: int = 10) -> None:
    """Let the event loop turn, for fewer turns than a batch gathers."""
    for _ in range(count):
        await asyncio.sleep(0)


async def quiet_turns() -> None:
    """Let the event loop turn until a batch that got no new call leaves."""
    await turns(50)


async def submit(batcher: Batcher[int, int], number: int) -> int:
    return await batcher.submit(f"organization-{number // 100}", number)


async def calls(batcher: Batcher[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(submit(batcher, number)) for number in numbers]
    await turns()
    return tasks


@pytest.fixture
async def doubler() -> AsyncIterator[Doubler]:
    doubler = Doubler()
    yield doubler
    await doubler.end()


async def test_a_lone_call_leaves_at_once(doubler: Doubler) -> None:
    (call,) = await calls(doubler.batcher(linger_seconds=NEVER_SECONDS), 2)
    assert doubler.batches == [[2]]
    await doubler.end_flush()
    assert await call == 4


async def test_calls_of_the_same_turn_leave_together(doubler: Doubler) -> None:
    await calls(doubler.batcher(linger_seconds=NEVER_SECONDS), 2, 4)
    assert doubler.batches == [[2, 4]]


async def test_calls_that_come_one_after_another_never_wait(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=NEVER_SECONDS)
    for number in (2, 4, 6):
        await calls(batcher, number)
        assert doubler.batches[-1] == [number]
        await doubler.end_flush()


async def test_calls_during_a_flush_leave_together_after_it(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=NEVER_SECONDS)
    first = await calls(batcher, 2)
    others = await calls(batcher, 4, 6, 8)
    assert doubler.batches == [[2]]
    await doubler.end_flush()
    assert doubler.batches == [[2], [4, 6, 8]]
    await doubler.end_flush()
    assert await asyncio.gather(*first, *others) == [4, 8, 12, 16]


async def test_after_a_flush_the_next_batch_waits_as_long_as_new_calls_come(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2)
    await calls(batcher, *MANY)
    doubler.gates[0].set()
    for number in (6, 8, 10, 12, 14):
        await calls(batcher, number)
        assert doubler.batches == [[2]]
    await quiet_turns()
    assert doubler.batches == [[2], [*MANY, 6, 8, 10, 12, 14]]


async def test_after_a_flush_a_few_calls_leave_at_once(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2)
    await calls(batcher, 4, 6)
    doubler.gates[0].set()
    await turns()
    assert doubler.batches == [[2], [4, 6]]


async def test_the_first_call_after_a_batch_waits_for_others(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=NEVER_SECONDS)
    await calls(batcher, *MANY)
    await doubler.end_flush()
    await calls(batcher, 6)
    await calls(batcher, 8)
    assert doubler.batches == [[*MANY]]
    await quiet_turns()
    assert doubler.batches == [[*MANY], [6, 8]]


async def test_a_batch_gathers_no_longer_than_its_linger_time(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=0.0)
    await calls(batcher, 2)
    await calls(batcher, *MANY)
    doubler.gates[0].set()
    await turns()
    assert doubler.batches == [[2], [*MANY]]


async def test_a_full_batch_does_not_wait_for_more(doubler: Doubler) -> None:
    batcher = doubler.batcher(size=6, linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2)
    await calls(batcher, *MANY)
    doubler.gates[0].set()
    await turns()
    assert doubler.batches == [[2]]
    await calls(batcher, 10)
    assert doubler.batches == [[2], [*MANY, 10]]
    await calls(batcher, 10, *MANY)
    doubler.gates[1].set()
    await turns()
    assert doubler.batches[2] == [10, *MANY]


async def test_a_batch_has_a_largest_size(doubler: Doubler) -> None:
    batcher = doubler.batcher(size=2, linger_seconds=NEVER_SECONDS)
    tasks = await calls(batcher, 2, 4, 6, 8, 10)
    assert doubler.batches == [[2, 4]]
    for _ in range(3):
        await doubler.end_flush()
    assert doubler.batches == [[2, 4], [6, 8], [10]]
    assert await asyncio.gather(*tasks) == [4, 8, 12, 16, 20]


async def test_an_error_of_one_item_is_raised_to_its_caller_alone(doubler: Doubler) -> None:
    batcher = doubler.batcher()
    await calls(batcher, 2)
    tasks = await calls(batcher, 4, 5, 6)
    await doubler.end_flush()
    await doubler.end_flush()
    four, five, six = await asyncio.gather(*tasks, return_exceptions=True)
    assert (four, six) == (8, 12)
    assert isinstance(five, Odd)


async def test_when_a_flush_fails_all_its_callers_get_the_error_and_the_next_flush_works(doubler: Doubler) -> None:
    batcher = doubler.batcher()
    doubler.error = ConnectionError()
    tasks = await calls(batcher, 2)
    later = await calls(batcher, 4)
    await doubler.end_flush()
    with pytest.raises(ConnectionError):
        await tasks[0]
    doubler.error = None
    await doubler.end_flush()
    assert await later[0] == 8


async def test_a_cancelled_caller_stops_neither_the_flush_nor_the_other_callers(doubler: Doubler) -> None:
    batcher = doubler.batcher()
    await calls(batcher, 2)
    cancelled, other = await calls(batcher, 4, 6)
    await doubler.end_flush()
    assert doubler.batches == [[2], [4, 6]]
    cancelled.cancel()
    await doubler.end_flush()
    assert await other == 12
    assert cancelled.cancelled()


async def test_the_item_of_a_caller_that_was_cancelled_while_it_waited_is_left_out(doubler: Doubler) -> None:
    batcher = doubler.batcher()
    await calls(batcher, 2)
    cancelled, other = await calls(batcher, 4, 6)
    cancelled.cancel()
    await doubler.end_flush()
    await doubler.end_flush()
    assert doubler.batches == [[2], [6]]
    assert await other == 12


async def test_drain_waits_for_the_flush_in_flight_and_for_waiting_calls(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2)
    await calls(batcher, 4)
    draining = asyncio.create_task(batcher.drain())
    await doubler.end_flush()
    assert doubler.batches == [[2], [4]]
    assert not draining.done()
    await doubler.end_flush()
    await draining


async def test_an_idle_batcher_is_drained_already(doubler: Doubler) -> None:
    await doubler.batcher().drain()
    assert doubler.batches == []


async def test_a_batch_has_calls_of_one_shard_and_shards_take_turns(doubler: Doubler) -> None:
    batcher = doubler.batcher(shards=ShardOfEach(), flushes=1)
    tasks = await calls(batcher, 2) + await calls(batcher, 104, 4, 106, 204)
    for _ in range(4):
        await doubler.end_flush()
    assert [await task for task in tasks] == [4, 208, 8, 212, 408]
    assert doubler.batches == [[2], [104, 106], [204], [4]]


async def test_shards_of_different_workers_are_flushed_side_by_side(doubler: Doubler) -> None:
    batcher = doubler.batcher(shards=ShardOfEach(workers={1: 1}))
    tasks = await calls(batcher, 2) + await calls(batcher, 104, 4, 106, 204)
    assert doubler.batches == [[2], [104, 106]]
    doubler.gates[1].set()
    await asyncio.gather(tasks[1], tasks[3])
    assert len(doubler.batches) == 2  # the third shard waits for the worker of the first
    doubler.gates[0].set()
    await until(lambda: len(doubler.batches) == 3)
    assert doubler.batches[2:] == [[204]]
    doubler.gates[2].set()
    await until(lambda: len(doubler.batches) == 4)
    doubler.gates[3].set()
    assert [await task for task in tasks] == [4, 208, 8, 212, 408]


async def test_a_slow_flush_of_a_shard_holds_up_the_others_of_its_worker_for_a_moment_only(doubler: Doubler) -> None:
    batcher = doubler.batcher(shards=ShardOfEach())
    slow = await calls(batcher, 2)
    others = await calls(batcher, 104)
    await until(lambda: len(doubler.batches) == 2)
    assert doubler.batches == [[2], [104]]
    await doubler.end_flush()
    assert await others[0] == 208
    assert not slow[0].done()


async def test_a_call_waits_until_its_shard_is_known_and_a_lane_moves_to_its_new_shard(doubler: Doubler) -> None:
    shards = ShardOfEach(workers={1: 1})
    batcher = doubler.batcher(shards=shards)
    first = await calls(batcher, 2)
    second = await calls(batcher, 4)
    others = await calls(batcher, 104)
    shards.numbers = dict.fromkeys(shards.numbers, 7)
    doubler.gates[0].set()
    doubler.gates[1].set()
    await until(lambda: len(doubler.batches) == 3)
    more = await calls(batcher, 106)
    await calls(batcher, 6)
    doubler.gates[2].set()
    await until(lambda: len(doubler.batches) == 4)
    assert doubler.batches == [[2], [104], [4], [106, 6]]
    doubler.gates[3].set()
    assert [await task for task in first + second + others + more] == [4, 8, 208, 212]


async def test_a_batch_has_an_equal_share_of_each_organization_and_what_is_left_over(doubler: Doubler) -> None:
    batcher = doubler.batcher(size=4)
    await calls(batcher, 2)
    await calls(batcher, 102, 104, 106, 108, 110, 202)
    await doubler.end_flush()
    assert doubler.batches == [[2], [102, 104, 106, 202]]


async def test_a_slow_flush_holds_up_only_its_own_organizations(doubler: Doubler) -> None:
    batcher = doubler.batcher()
    slow = await calls(batcher, 2)
    behind = await calls(batcher, 4)
    others = await calls(batcher, 104)
    await until(lambda: len(doubler.batches) == 2)
    assert doubler.batches == [[2], [104]]
    await doubler.end_flush()
    assert await others[0] == 208
    assert not behind[0].done()
    doubler.gates[0].set()
    await quiet_turns()
    await doubler.end_flush()
    assert (await slow[0], await behind[0]) == (4, 8)


async def test_no_more_flushes_are_in_flight_than_allowed(doubler: Doubler) -> None:
    batcher = doubler.batcher(flushes=2)
    await calls(batcher, 2)
    await calls(batcher, 102)
    await until(lambda: len(doubler.batches) == 2)
    await calls(batcher, 202)
    await asyncio.sleep(0.7)  # long enough for another to overtake
    assert doubler.batches == [[2], [102]]


async def test_a_locked_organization_is_flushed_again_by_itself_and_waits_then(doubler: Doubler) -> None:
    batcher = doubler.batcher()
    doubler.locked = {102}
    free, locked, after = await calls(batcher, 2, 102, 104)
    await doubler.end_flush()
    assert await free == 4
    assert (doubler.batches, doubler.waits) == ([[2, 102, 104], [102]], [False, True])
    others = await calls(batcher, 4)
    assert doubler.batches[2:] == [[4]]
    assert await after == 208
    doubler.locked.clear()
    for gate in doubler.gates:
        gate.set()
    assert (await locked, await others[0]) == (204, 8)


async def test_a_call_whose_rows_stay_locked_raises_account_busy(doubler: Doubler) -> None:
    batcher = doubler.batcher(busy_seconds=0.0)
    doubler.locked = {102}
    free, locked = await calls(batcher, 2, 102)
    await doubler.end_flush()
    assert await free == 4
    with pytest.raises(AccountBusy):
        await locked


async def test_flushes_that_wait_for_locks_leave_others_to_the_free(doubler: Doubler) -> None:
    batcher = doubler.batcher(flushes=4)
    doubler.locked = {2, 102, 202, 302}
    await calls(batcher, 2, 102, 202, 302)
    await doubler.end_flush()
    assert doubler.waits == [False, True, True]
    (free,) = await calls(batcher, 402)
    await doubler.end_flush()
    assert await free == 804


async def test_flushes_that_wait_for_locks_at_one_worker_leave_those_of_another_their_own(doubler: Doubler) -> None:
    batcher = doubler.batcher(flushes=2, shards=ShardOfEach(workers={1: 1}))
    doubler.locked = {2, 102}
    await calls(batcher, 2, 102)
    assert doubler.batches == [[2], [102]]
    for gate in doubler.gates:
        gate.set()
    await quiet_turns()
    assert (doubler.batches[2:], doubler.waits[2:]) == ([[2], [102]], [True, True])
