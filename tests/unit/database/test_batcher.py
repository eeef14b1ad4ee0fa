"""The batcher: a lone call goes at once, and what comes while a flush is in flight leaves together."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from server.database.batcher import Batcher, Batching, Foresee, as_it_is
from server.database.pause import Pause

NEVER_SECONDS = 3600.0
NEVER_SLEEPS = Pause(long_seconds=NEVER_SECONDS)  # so that a busy machine's batches gather for as many turns


class Odd(Exception):
    """What the desk says to an odd number."""


@dataclass
class Desk:
    """Doubles even numbers, batch by batch, each when the test lets it."""

    batches: list[list[int]] = field(default_factory=list)
    gates: list[asyncio.Event] = field(default_factory=list)
    error: Exception | None = None
    foresees: bool = False
    changes_its_mind: bool = False

    async def flush(self, numbers: Sequence[int], foresee: Foresee) -> list[int | Exception]:
        self.batches.append(list(numbers))
        self.gates.append(asyncio.Event())
        answers: list[int | Exception] = [Odd() if number % 2 else 2 * number for number in numbers]
        if self.foresees:
            foresee(["something else"] * len(numbers) if self.changes_its_mind else answers)
        await self.gates[-1].wait()
        if self.error:
            raise self.error
        return answers

    def batcher(self, *, size: int = 100, linger_seconds: float = 0.0, apart: bool = False) -> Batcher[int, int]:
        return Batcher(self.flush, Batching(size, linger_seconds, by_organization=apart), pause=NEVER_SLEEPS)

    async def let_go(self) -> None:
        """End the flush, and wait for what it makes way for."""
        self.gates[-1].set()
        await quiet()


async def turns(count: int = 10) -> None:
    """Let the event loop go round, for less than a batch takes that gathers."""
    for _ in range(count):
        await asyncio.sleep(0)


async def quiet() -> None:
    """Let it go round until a batch has seen that nobody new comes."""
    await turns(50)


async def submit(batcher: Batcher[int, int], number: int) -> int:
    return await batcher.submit(str(number // 100), lambda: number, as_it_is)


async def calls(batcher: Batcher[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(submit(batcher, number)) for number in numbers]
    await turns()
    return tasks


@pytest.fixture(params=[False, True], ids=["", "foreseeing"])
def desk(request: pytest.FixtureRequest) -> Desk:
    return Desk(foresees=request.param)


@pytest.fixture
def foreseeing() -> Desk:
    return Desk(foresees=True)


async def test_a_lone_call_goes_at_once(desk: Desk) -> None:
    (call,) = await calls(desk.batcher(linger_seconds=NEVER_SECONDS), 2)
    assert desk.batches == [[2]]
    await desk.let_go()
    assert await call == 4


async def test_calls_of_the_same_turn_leave_together(desk: Desk) -> None:
    await calls(desk.batcher(linger_seconds=NEVER_SECONDS), 2, 4)
    assert desk.batches == [[2, 4]]


async def test_a_caller_that_comes_alone_again_and_again_never_waits(desk: Desk) -> None:
    batcher = desk.batcher(linger_seconds=NEVER_SECONDS)
    for number in (2, 4, 6):
        await calls(batcher, number)
        assert desk.batches[-1] == [number]
        await desk.let_go()


async def test_calls_during_a_flush_leave_together_after_it(desk: Desk) -> None:
    batcher = desk.batcher(linger_seconds=NEVER_SECONDS)
    first = await calls(batcher, 2)
    others = await calls(batcher, 4, 6, 8)
    assert desk.batches == [[2]]
    await desk.let_go()
    assert desk.batches == [[2], [4, 6, 8]]
    await desk.let_go()
    assert await asyncio.gather(*first, *others) == [4, 8, 12, 16]


async def test_after_a_flush_the_next_waits_as_long_as_somebody_new_comes(desk: Desk) -> None:
    batcher = desk.batcher(linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2)
    await calls(batcher, 4)
    desk.gates[0].set()
    for number in (6, 8, 10, 12, 14):
        await calls(batcher, number)
        assert desk.batches == [[2]]
    await quiet()
    assert desk.batches == [[2], [4, 6, 8, 10, 12, 14]]


async def test_whoever_comes_first_after_a_batch_is_not_taken_for_alone(desk: Desk) -> None:
    batcher = desk.batcher(linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2, 4)
    await desk.let_go()
    await calls(batcher, 6)
    await calls(batcher, 8)
    assert desk.batches == [[2, 4]]
    await quiet()
    assert desk.batches == [[2, 4], [6, 8]]


async def test_a_batch_lingers_no_longer_than_it_may(desk: Desk) -> None:
    batcher = desk.batcher(linger_seconds=0.0)
    await calls(batcher, 2)
    await calls(batcher, 4)
    desk.gates[0].set()
    await turns()
    assert desk.batches == [[2], [4]]


async def test_a_full_batch_does_not_wait_for_more(desk: Desk) -> None:
    batcher = desk.batcher(size=4, linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2)
    await calls(batcher, 4, 6, 8)
    desk.gates[0].set()
    await turns()
    assert desk.batches == [[2]]
    await calls(batcher, 10)
    assert desk.batches == [[2], [4, 6, 8, 10]]
    await calls(batcher, 2, 4, 6, 8)
    desk.gates[1].set()
    await turns()
    assert desk.batches[2] == [2, 4, 6, 8]


async def test_a_batch_has_a_largest_size(desk: Desk) -> None:
    batcher = desk.batcher(size=2, linger_seconds=NEVER_SECONDS)
    tasks = await calls(batcher, 2, 4, 6, 8, 10)
    assert desk.batches == [[2, 4]]
    for _ in range(3):
        await desk.let_go()
    assert desk.batches == [[2, 4], [6, 8], [10]]
    assert await asyncio.gather(*tasks) == [4, 8, 12, 16, 20]


async def test_an_error_of_one_item_is_its_callers_alone(desk: Desk) -> None:
    batcher = desk.batcher()
    await calls(batcher, 2)
    tasks = await calls(batcher, 4, 5, 6)
    await desk.let_go()
    await desk.let_go()
    four, five, six = await asyncio.gather(*tasks, return_exceptions=True)
    assert (four, six) == (8, 12)
    assert isinstance(five, Odd)


async def test_when_a_flush_fails_all_its_callers_are_told_and_the_next_flush_works(desk: Desk) -> None:
    batcher = desk.batcher()
    desk.error = ConnectionError()
    tasks = await calls(batcher, 2)
    later = await calls(batcher, 4)
    await desk.let_go()
    with pytest.raises(ConnectionError):
        await tasks[0]
    desk.error = None
    await desk.let_go()
    assert await later[0] == 8


async def test_what_cannot_be_prepared_or_finished_is_its_callers_alone(desk: Desk) -> None:
    def odd(*_: object) -> int:
        raise Odd

    batcher = desk.batcher()
    good = await calls(batcher, 2)
    spoilt = [
        asyncio.create_task(batcher.submit("0", prepare, finish))
        for prepare, finish in ((odd, as_it_is), (lambda: 4, odd), (lambda: 6, str))
    ]
    await turns()
    await desk.let_go()
    await desk.let_go()
    assert await good[0] == 4
    unprepared, unfinished, text = await asyncio.gather(*spoilt, return_exceptions=True)
    assert (type(unprepared), type(unfinished), text) == (Odd, Odd, "12")
    assert desk.batches == [[2], [4, 6]]


async def test_a_batch_of_which_nothing_can_be_prepared_is_not_flushed(desk: Desk) -> None:
    def odd() -> int:
        raise Odd

    with pytest.raises(Odd):
        await desk.batcher().submit("0", odd, as_it_is)
    assert desk.batches == []


async def test_a_cancelled_caller_stops_neither_the_flush_nor_its_neighbours(desk: Desk) -> None:
    batcher = desk.batcher()
    await calls(batcher, 2)
    gone, stays = await calls(batcher, 4, 6)
    await desk.let_go()
    assert desk.batches == [[2], [4, 6]]
    gone.cancel()
    await desk.let_go()
    assert await stays == 12
    assert gone.cancelled()


async def test_a_caller_that_was_cancelled_while_it_waited_is_not_served(desk: Desk) -> None:
    batcher = desk.batcher()
    await calls(batcher, 2)
    gone, stays = await calls(batcher, 4, 6)
    gone.cancel()
    await desk.let_go()
    await desk.let_go()
    assert desk.batches == [[2], [6]]
    assert await stays == 12


async def test_drain_waits_for_what_is_in_flight_and_for_what_waits(desk: Desk) -> None:
    batcher = desk.batcher(linger_seconds=NEVER_SECONDS)
    await calls(batcher, 2)
    await calls(batcher, 4)
    draining = asyncio.create_task(batcher.drain())
    await desk.let_go()
    assert desk.batches == [[2], [4]]
    assert not draining.done()
    await desk.let_go()
    await draining


async def test_an_idle_batcher_is_drained_already(desk: Desk) -> None:
    await desk.batcher().drain()
    assert desk.batches == []


async def test_organizations_can_be_kept_apart(desk: Desk) -> None:
    batcher = desk.batcher(apart=True)
    tasks = await calls(batcher, 2) + await calls(batcher, 104, 4, 106, 204)
    for _ in range(4):
        await desk.let_go()
    assert [await task for task in tasks] == [4, 208, 8, 212, 408]
    assert desk.batches == [[2], [104, 106], [4], [204]]


async def test_what_is_foreseen_is_finished_meanwhile_and_told_when_the_flush_ends(foreseeing: Desk) -> None:
    finished: list[int] = []

    def finish(answer: int) -> str:
        finished.append(answer)
        return str(answer)

    call = asyncio.create_task(foreseeing.batcher().submit("0", lambda: 2, finish))
    await turns()
    assert finished == [4]
    assert not call.done()
    await foreseeing.let_go()
    assert await call == "4"
    assert finished == [4]


async def test_an_answer_that_was_not_foreseen_is_finished_anew(foreseeing: Desk) -> None:
    foreseeing.changes_its_mind = True
    call = asyncio.create_task(foreseeing.batcher().submit("0", lambda: 2, str))
    await turns()
    await foreseeing.let_go()
    assert await call == "4"


async def test_nobody_is_told_what_was_foreseen_when_the_flush_fails(foreseeing: Desk) -> None:
    foreseeing.error = ConnectionError()
    call = asyncio.create_task(foreseeing.batcher().submit("0", lambda: 2, str))
    await turns()
    await foreseeing.let_go()
    with pytest.raises(ConnectionError):
        await call
