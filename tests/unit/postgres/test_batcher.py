"""The batcher: a lone call leaves at once; calls that come while a flush is in flight leave together."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from server.postgres.batcher import Batcher, Batching, LoopTurn

NEVER_SECONDS = 3600.0
NEVER_SLEEPS = LoopTurn(long_seconds=NEVER_SECONDS)  # so that also on a busy machine a batch gathers for 30 turns


class Odd(Exception):
    """The error of an odd number."""


@dataclass
class Doubler:
    """Doubles even numbers and refuses odd ones; each flush ends when the test lets it."""

    batches: list[list[int]] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)
    error: Exception | None = None

    async def flush(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(numbers))
        self.gates.append(asyncio.Event())
        await self.gates[-1].wait()
        if self.error:
            raise self.error
        return [Odd() if number % 2 else 2 * number for number in numbers]

    def batcher(
        self, *, size: int = 100, linger_seconds: float = 0.0, by_organization: bool = False
    ) -> Batcher[int, int]:
        return Batcher(self.flush, Batching(size, linger_seconds, by_organization=by_organization), turn=NEVER_SLEEPS)

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
def doubler() -> Doubler:
    return Doubler()


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
    await calls(batcher, 4)
    doubler.gates[0].set()
    for number in (6, 8, 10, 12, 14):
        await calls(batcher, number)
        assert doubler.batches == [[2]]
    await quiet_turns()
    assert doubler.batches == [[2], [4, 6, 8, 10, 12, 14]]


async def test_the_first_call_after_a_batch_waits_for_others(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2, 4)
    await doubler.end_flush()
    await calls(batcher, 6)
    await calls(batcher, 8)
    assert doubler.batches == [[2, 4]]
    await quiet_turns()
    assert doubler.batches == [[2, 4], [6, 8]]


async def test_a_batch_gathers_no_longer_than_its_linger_time(doubler: Doubler) -> None:
    batcher = doubler.batcher(linger_seconds=0.0)
    await calls(batcher, 2)
    await calls(batcher, 4)
    doubler.gates[0].set()
    await turns()
    assert doubler.batches == [[2], [4]]


async def test_a_full_batch_does_not_wait_for_more(doubler: Doubler) -> None:
    batcher = doubler.batcher(size=4, linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2)
    await calls(batcher, 4, 6, 8)
    doubler.gates[0].set()
    await turns()
    assert doubler.batches == [[2]]
    await calls(batcher, 10)
    assert doubler.batches == [[2], [4, 6, 8, 10]]
    await calls(batcher, 2, 4, 6, 8)
    doubler.gates[1].set()
    await turns()
    assert doubler.batches[2] == [2, 4, 6, 8]


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


async def test_batching_by_organization_flushes_each_organization_separately(doubler: Doubler) -> None:
    batcher = doubler.batcher(by_organization=True)
    tasks = await calls(batcher, 2) + await calls(batcher, 104, 4, 106, 204)
    for _ in range(4):
        await doubler.end_flush()
    assert [await task for task in tasks] == [4, 208, 8, 212, 408]
    assert doubler.batches == [[2], [104, 106], [4], [204]]
