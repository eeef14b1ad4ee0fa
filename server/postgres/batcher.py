"""The batcher: group commit. Concurrent calls share a flush, which is one transaction of several items."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from server.errors import AccountBusy

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Answer = TypeVar("Answer")
Flushed_contra = TypeVar("Flushed_contra", contravariant=True)
Found_co = TypeVar("Found_co", covariant=True)

_QUIET_TURNS: Final = 30
"""Turns of the event loop without a new call after which a batch is flushed: about 0.2 ms of an idle loop.

A busy loop needs several turns per arriving call. With 4 turns a busy server made batches of two calls and spent most
of its time on flushes: GetBalance was half as fast.
"""
_FEW_CALLS: Final = 4
"""So many calls of a batch, or waiting for the next, show that the loop is not busy: they are flushed at once."""
_SLEEP_SECONDS: Final = 0.001
_OVERTAKE_SECONDS: Final = 0.3
"""After this time in flight a flush no longer holds up the next batch.

A full batch on a busy processor takes up to 0.1 s: with that as the bound, halves of batches overtook each other, which
cost PostgreSQL a tenth more per send."""
_LOCKED_SECONDS: Final = 0.25
"""For so long after its rows were found locked a lane is flushed by itself: two replicas that serve one organization
take turns at its lock then, in the order in which they asked for it."""


_UNANSWERED: Final = AssertionError("an item was not answered")


class Locked:
    """The answer to an item whose rows another transaction has locked: the batcher flushes it again."""


LOCKED: Final = Locked()


@dataclass(frozen=True, slots=True)
class Batching:
    """The limits of a batch."""

    size: int = 96
    """The most calls per flush; a batch of this size is flushed without waiting for more.

    The calls of a batch should fit into the processor's caches together. On two shared cores SendOtp was slower with 64
    and with 128. With 256 it was slower by a tenth at three times its capacity.
    """
    linger_seconds: float = 0.02
    """The longest time that a batch gathers calls, in seconds. A lone call never waits."""
    by_organization: bool = False
    """Whether a flush has calls of one organization only, so that on Citus its transaction stays on one shard."""
    flushes: int = 4
    """The most flushes in flight at once. Half of them, at least one, may wait for locks."""
    busy_seconds: float = 2.0
    """How long a call may wait for rows that another transaction has locked, before it raises AccountBusy."""


class LoopTurn:
    """Yields the processor to waiting threads, then lets the event loop turn once.

    A yield (sched_yield) is almost free when few threads are runnable. When another program keeps the processor busy,
    each yield gives it a time slice. So after a long yield this sleeps instead for a while: the kernel soon schedules a
    thread that has slept.
    """

    def __init__(self, *, long_seconds: float = 0.0025, rest_seconds: float = 0.05) -> None:
        """After a yield of more than `long_seconds`, calls within the next `rest_seconds` sleep instead.

        gRPC's polling thread (see api/server.py) and PostgreSQL seldom hold the processor for more than 2 ms; other
        programs held it for 1 to 5 ms.
        """
        self._long_seconds = long_seconds
        self._rest_seconds = rest_seconds
        self._sleeps_until = 0.0

    async def __call__(self) -> bool:
        """Take one turn. Returns True when it slept, which gave every other thread a turn."""
        start = time.monotonic()
        if start < self._sleeps_until:
            await asyncio.sleep(_SLEEP_SECONDS)
            return True
        os.sched_yield()
        if time.monotonic() - start > self._long_seconds:
            self._sleeps_until = start + self._rest_seconds
        await asyncio.sleep(0)
        return False


loop_turn: Final = LoopTurn()
"""The process's one LoopTurn: its event loop runs on one processor at a time."""


class Flush(Protocol[Flushed_contra, Found_co]):
    """Answers the items of a batch."""

    async def __call__(
        self, items: Sequence[Flushed_contra], /, *, wait: bool
    ) -> Sequence[Found_co | Locked | Exception]:
        """One answer, one error or LOCKED per item, in order. `wait` says whether it may wait for locked rows.

        AccountBusy means that no row was locked in time: LOCKED for all items. Any other error is the answer to all.
        """
        ...


class Batcher(Generic[Item, Answer]):
    """Gathers concurrent `submit` calls into batches and passes each batch to `flush`.

    A lone call is flushed at once, together with calls of the same turn of the event loop. Calls that arrive during a
    flush form the next batch. It is flushed when it is full, or when no new call has arrived for _QUIET_TURNS turns: a
    batch grows while the loop is busy with new calls, when large batches pay off, and is flushed when the loop is idle.

    Calls wait in a lane of their organization. A batch takes an equal share of each waiting lane, in turn, so that the
    backlog of one organization does not delay the calls of another. A lane is in one flush at a time: the calls of an
    organization are served in order. A flush that takes longer than _OVERTAKE_SECONDS no longer holds up the next.

    A lane whose rows another transaction has locked delays itself alone: it is flushed again by itself, and may wait
    for the locks then, while the other lanes are served.
    """

    def __init__(self, flush: Flush[Item, Answer], batching: Batching, *, turn: LoopTurn = loop_turn) -> None:
        self._flush = flush
        self._batching = batching
        self._turn = turn
        self._lanes: dict[str, _Lane[Item, Answer]] = {}
        self._ready: deque[_Lane[Item, Answer]] = deque()
        """Lanes with calls, none in flight, whose rows are not known to be locked."""
        self._locked: deque[_Lane[Item, Answer]] = deque()
        """Lanes with calls, none in flight, whose rows were locked a moment ago."""
        self._waiting = 0
        """Calls in the ready lanes."""
        self._last_size = 0
        self._flushes = 0
        self._lock_waits = 0
        self._leader: asyncio.Task[None] | None = None
        """The task that flushes ready lanes, one batch after another, until its flush is overtaken."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, organization_id: str, item: Item) -> Answer:
        """Wait for the flush of the item; returns the item's answer or raises its error.

        A caller that is cancelled before the flush withdraws its item. A caller that is cancelled during the flush does
        not stop it, and does not learn its result. Raises AccountBusy after busy_seconds of waiting for locked rows.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._wait(organization_id, [_Call(item, future, time.monotonic())])
        return await future

    def _wait(self, organization_id: str, calls: "Sequence[_Call[Item, Answer]]") -> None:
        """Let calls wait in their organization's lane."""
        lane = self._lanes.get(organization_id)
        if lane is None:
            lane = self._lanes[organization_id] = _Lane(organization_id)
            self._ready.append(lane)
        lane.calls.extend(calls)
        if lane.is_ready:
            self._waiting += len(calls)
            self._lead()

    async def submit_all(self, organization_id: str, items: Sequence[Item]) -> Sequence[Answer | Exception]:
        """Wait for the flushes of several items; returns the answer or the error of each, in order.

        As if each had been submitted: they take turns with the calls of other organizations.
        """
        if not items:
            return ()
        group: _Group[Answer] = _Group(len(items))
        now = time.monotonic()
        self._wait(organization_id, [_Call(item, _Place(group, position), now) for position, item in enumerate(items)])
        await group.future
        return group.answers

    async def drain(self) -> None:
        """Wait until no call is waiting or in flight, including calls that are submitted meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _lead(self) -> None:
        """Flush the ready lanes, unless another task does that or enough flushes are in flight."""
        if self._leader is None and self._ready and self._flushes < self._batching.flushes:
            self._leader = self._start(self._flush_ready())

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _flush_ready(self) -> None:
        me, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert me is not None  # noqa: S101 - this is a task
        try:
            if self._last_size > _FEW_CALLS:  # after a large batch, more calls are likely to follow the first
                await self._gather()
            while self._ready and self._leader is me:
                lanes = self._next_batch()
                overtaking = loop.call_later(_OVERTAKE_SECONDS, self._overtake, me)
                await self._answer(lanes, wait=False)
                overtaking.cancel()
                if self._ready and self._leader is me and max(self._last_size, self._waiting) > _FEW_CALLS:
                    await self._gather()
        finally:
            if self._leader is me:
                self._leader = None
            self._lead()

    def _overtake(self, slow: asyncio.Task[None]) -> None:
        """Let another task flush the next batch."""
        if self._leader is slow and self._flushes < self._batching.flushes:
            self._leader = None
            self._lead()

    async def _gather(self) -> None:
        """Wait for more calls, until the batch is full, no new calls arrive, or linger_seconds have passed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._batching.linger_seconds
        count, quiet_turns = self._waiting, 0
        while count < self._batching.size and quiet_turns < _QUIET_TURNS and loop.time() < deadline:
            turns = _QUIET_TURNS if await self._turn() else 1
            before, count = count, self._waiting
            quiet_turns = quiet_turns + turns if count == before else 0

    def _next_batch(self) -> "list[_Lane[Item, Answer]]":
        """Take the calls of the next flush: an equal share of each ready lane, plus what small lanes leave over."""
        left = self._batching.size
        lanes: list[_Lane[Item, Answer]] = []
        while self._ready and left and not (lanes and self._batching.by_organization):
            lane = self._ready.popleft()
            lane.is_ready = False
            self._waiting -= len(lane.calls)
            left -= lane.take(-(-left // (1 + len(self._ready))))
            lanes.append(lane)
        for lane in lanes if left else ():
            left -= lane.take(left)
        return lanes

    async def _answer(self, lanes: "Sequence[_Lane[Item, Answer]]", *, wait: bool) -> None:
        """Flush the calls taken from the lanes, answer them, and put the lanes back."""
        calls = [call for lane in lanes for call in lane.in_flight]
        if not wait:
            self._last_size = len(calls)
        self._flushes += 1
        answers: Sequence[Answer | Locked | Exception]
        try:
            answers = await self._flush([call.item for call in calls], wait=wait) if calls else ()
        except AccountBusy:
            answers = [LOCKED] * len(calls)
        except Exception as error:  # noqa: BLE001 - every call of the batch raises it
            answers = [error] * len(calls)
        finally:
            self._flushes -= 1
        locked = {id(call) for call, answer in zip(calls, answers, strict=True) if not call.answer(answer)}
        for lane in lanes:
            self._put_back(lane, [call for call in lane.in_flight if id(call) in locked] if locked else [])
        self._wait_for_locks()

    def _put_back(self, lane: "_Lane[Item, Answer]", locked: "Sequence[_Call[Item, Answer]]") -> None:
        """Let the lane wait for its next flush, with the calls that found their rows locked first; or drop it."""
        lane.in_flight.clear()
        if locked:
            lane.calls.extendleft(reversed(locked))
            lane.locked_until = time.monotonic() + _LOCKED_SECONDS
        is_locked = lane.locked_until and lane.locked_until > time.monotonic()
        if is_locked:
            lane.expire(self._batching.busy_seconds)
        if not lane.calls:
            del self._lanes[lane.organization_id]
        elif is_locked:
            self._locked.append(lane)
        else:
            lane.is_ready = True
            self._ready.append(lane)
            self._waiting += len(lane.calls)

    def _wait_for_locks(self) -> None:
        """Flush locked lanes, each by itself, as far as flushes may wait for locks."""
        while self._locked and self._lock_waits < max(1, self._batching.flushes // 2):
            self._lock_waits += 1
            self._start(self._flush_locked(self._locked.popleft()))

    async def _flush_locked(self, lane: "_Lane[Item, Answer]") -> None:
        lane.take(self._batching.size)
        try:
            await self._answer([lane], wait=True)
        finally:
            self._lock_waits -= 1
            for waiting in list(self._locked):
                waiting.expire(self._batching.busy_seconds)
            self._wait_for_locks()
            self._lead()


class _Group(Generic[Answer]):
    """The answers to several items, as they come."""

    def __init__(self, count: int) -> None:
        self.answers: list[Answer | Exception] = [_UNANSWERED] * count
        self.missing = count
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when every item is answered; the caller may cancel it."""

    def put(self, position: int, answer: Answer | Exception) -> None:
        """Store an answer."""
        self.answers[position] = answer
        self.missing -= 1
        if not self.missing and not self.future.done():
            self.future.set_result(None)


class _Place(NamedTuple, Generic[Answer]):
    """One item's place in a group: what a future is to a single call."""

    group: _Group[Answer]
    position: int

    def done(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.group.future.done()

    def set_result(self, answer: Answer) -> None:
        """Store the answer."""
        self.group.put(self.position, answer)

    def set_exception(self, error: Exception) -> None:
        """Store the error."""
        self.group.put(self.position, error)


class _Call(NamedTuple, Generic[Item, Answer]):
    """A waiting call."""

    item: Item
    future: asyncio.Future[Answer] | _Place[Answer]
    start: float
    """In seconds of time.monotonic()."""

    def answer(self, answer: Answer | Locked | Exception) -> bool:
        """Give the caller its answer or its error; False when it has to wait for locked rows."""
        if self.future.done():
            return True
        if isinstance(answer, Locked):
            return False
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)
        return True


@dataclass(slots=True, eq=False)
class _Lane(Generic[Item, Answer]):
    """The calls of one organization."""

    organization_id: str
    calls: deque[_Call[Item, Answer]] = field(default_factory=deque)
    in_flight: list[_Call[Item, Answer]] = field(default_factory=list)
    is_ready: bool = True
    """Whether its calls wait for the next batch."""
    locked_until: float = 0.0
    """Until then it is flushed by itself, as its rows were locked a moment ago: time.monotonic()."""

    def take(self, count: int) -> int:
        """Move at most `count` calls into the flight, oldest first; returns how many. Drops cancelled ones."""
        taken = 0
        while self.calls and taken < count:
            call = self.calls.popleft()
            if not call.future.done():  # a cancelled call is not charged
                self.in_flight.append(call)
                taken += 1
        return taken

    def expire(self, busy_seconds: float) -> None:
        """Let the calls that have waited for too long raise AccountBusy."""
        oldest = time.monotonic() - busy_seconds
        while self.calls and (self.calls[0].future.done() or self.calls[0].start <= oldest):
            self.calls.popleft().answer(AccountBusy(retry_after_seconds=1.0))


async def in_steps(
    calls: Sequence[Item],
    *,
    prepare: Callable[[Item], Prepared],
    decide: Callable[[Sequence[Prepared]], Awaitable[Sequence[Any]]],
    answer: Callable[[Any, Item], Answer],
) -> list[Answer | Locked | Exception]:
    """Prepare all calls, decide them together and answer each; return an answer, an error or LOCKED per call.

    An error while preparing or answering a call affects only this call. AccountBusy is LOCKED for all.
    """
    prepared = [_attempt(prepare, call) for call in calls]
    valid = [item for item in prepared if not isinstance(item, Exception)]
    try:
        decided: Iterator[Any] = iter(await decide(valid) if valid else ())
    except AccountBusy:
        decided = iter([LOCKED] * len(valid))
    except Exception as error:  # noqa: BLE001 - every call of this step ends with it
        decided = iter([error] * len(valid))
    results = [item if isinstance(item, Exception) else next(decided) for item in prepared]
    return [
        result if isinstance(result, Exception | Locked) else _attempt(answer, result, call)
        for result, call in zip(results, calls, strict=True)
    ]


def _attempt(function: Callable[..., Answer], *arguments: object) -> Answer | Exception:
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - only this call ends with it
        return error
