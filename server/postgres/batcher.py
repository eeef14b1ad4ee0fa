"""The batcher: group commit. Concurrent calls share a flush, which is one transaction of several items."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from server.errors import AccountBusy
from server.postgres.lanes import LOCKED, Answer, Call, Group, Item, Lane, Locked, Place, ShardLanes, Worker
from server.traces import current_span, shared_span

Prepared = TypeVar("Prepared")
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


class Shards(Protocol):
    """Tells the shard of an organization; see ShardMap."""

    def find(self, organization_id: str) -> int | None:
        """The id of the shard; None when it has to be asked for."""
        ...

    async def ask(self, organization_id: str) -> int:
        """The id of the shard. May raise DatabaseUnavailable."""
        ...

    def worker(self, shard_id: int) -> Hashable:
        """Who runs the transactions of the shard. The flushes of one worker's shards take turns."""
        ...


class _OneShard:
    def find(self, organization_id: str) -> int:  # noqa: ARG002
        return 0

    async def ask(self, organization_id: str) -> int:  # noqa: ARG002
        return 0

    def worker(self, shard_id: int) -> int:
        return shard_id


ONE_SHARD: Final[Shards] = _OneShard()


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
    shards: Shards = ONE_SHARD
    """Where organizations live. A flush has calls of one shard only, so that its transaction runs on one worker."""
    flushes: int = 4
    """The most flushes in flight at once to each worker. Half of them, at least one, may wait for locks."""
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

    A batch has calls of one shard. The shards of one worker take turns, as few large batches cost less than many small
    ones; the flushes of different workers run side by side. Plain PostgreSQL is one shard.

    A lane whose rows another transaction has locked delays itself alone: it is flushed again by itself, and may wait
    for the locks then, while the other lanes are served.
    """

    def __init__(
        self, flush: Flush[Item, Answer], batching: Batching, *, name: str = "batch", turn: LoopTurn = loop_turn
    ) -> None:
        self._flush = flush
        self._name = name
        self._batching = batching
        self._turn = turn
        self._lanes: dict[str, Lane[Item, Answer]] = {}
        self._shards: dict[int, ShardLanes[Item, Answer]] = {}
        self._workers: dict[Hashable, Worker[Item, Answer]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, organization_id: str, item: Item) -> Answer:
        """Wait for the flush of the item; returns the item's answer or raises its error.

        A caller that is cancelled before the flush withdraws its item. A caller that is cancelled during the flush does
        not stop it, and does not learn its result. Raises AccountBusy after busy_seconds of waiting for locked rows.
        """
        start = time.monotonic()
        shard_id = self._batching.shards.find(organization_id)
        if shard_id is None:
            shard_id = await self._batching.shards.ask(organization_id)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._wait(organization_id, shard_id, [Call(item, future, start, current_span())])
        return await future

    def _wait(self, organization_id: str, shard_id: int, calls: Sequence[Call[Item, Answer]]) -> None:
        """Let calls wait in their organization's lane."""
        lane = self._lanes.get(organization_id)
        if lane is None:
            lane = self._lanes[organization_id] = Lane(organization_id, self._shard(shard_id))
            lane.shard.ready.append(lane)
        lane.calls.extend(calls)
        if lane.is_ready:
            lane.shard.waiting += len(calls)
            self._lead(lane.shard)

    def _shard(self, shard_id: int) -> ShardLanes[Item, Answer]:
        shard = self._shards.get(shard_id)
        if shard is None:
            shard = self._shards[shard_id] = ShardLanes(shard_id)
        return shard

    def _worker(self, shard: ShardLanes[Item, Answer]) -> Worker[Item, Answer]:
        key = self._batching.shards.worker(shard.shard_id)
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = Worker()
        return worker

    async def submit_all(self, organization_id: str, items: Sequence[Item]) -> Sequence[Answer | Exception]:
        """Wait for the flushes of several items; returns the answer or the error of each, in order.

        As if each had been submitted: they take turns with the calls of other organizations.
        """
        if not items:
            return ()
        now = time.monotonic()
        shard_id = await self._batching.shards.ask(organization_id)
        group: Group[Answer] = Group(len(items))
        calls = [Call(item, Place(group, position), now, current_span()) for position, item in enumerate(items)]
        self._wait(organization_id, shard_id, calls)
        await group.future
        return group.answers

    async def drain(self) -> None:
        """Wait until no call is waiting or in flight, including calls that are submitted meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _lead(self, shard: ShardLanes[Item, Answer]) -> None:
        """Flush the shard's ready lanes, or let it wait for its turn, unless another task does that."""
        if shard.leader is None and shard.ready and not shard.waits_for_turn:
            shard.waits_for_turn = True
            worker = self._worker(shard)
            worker.turns.append(shard)
            self._take_turns(worker)

    def _take_turns(self, worker: Worker[Item, Answer]) -> None:
        """Flush the shard whose turn it is, if its flush may be in flight."""
        if worker.turns and not worker.is_led and worker.flushes < self._batching.flushes:
            shard = worker.turns.popleft()
            shard.waits_for_turn = False
            worker.flushes += 1
            worker.is_led = True
            shard.leader = self._start(self._flush_ready(shard, worker))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, context=Context())  # without the span of the call that happens to start it
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _flush_ready(self, shard: ShardLanes[Item, Answer], worker: Worker[Item, Answer]) -> None:
        me, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert me is not None  # noqa: S101 - this is a task
        try:
            if shard.last_size > _FEW_CALLS:  # after a large batch, more calls are likely to follow the first
                await self._gather(shard)
            while shard.ready and shard.leader is me:
                lanes = self._next_batch(shard)
                overtaking = loop.call_later(_OVERTAKE_SECONDS, self._overtake, shard, worker, me)
                shard.last_size = await self._answer(lanes, wait=False)
                overtaking.cancel()
                if worker.turns:  # other shards wait
                    break
                if shard.ready and shard.leader is me and max(shard.last_size, shard.waiting) > _FEW_CALLS:
                    await self._gather(shard)
        finally:
            worker.flushes -= 1
            if shard.leader is me:
                shard.leader = None
                worker.is_led = False
            self._lead(shard)
            self._take_turns(worker)

    def _overtake(
        self, shard: ShardLanes[Item, Answer], worker: Worker[Item, Answer], slow: asyncio.Task[None]
    ) -> None:
        """Let another task flush the worker's next batch."""
        if shard.leader is slow and worker.flushes < self._batching.flushes:
            shard.leader = None
            worker.is_led = False
            self._lead(shard)
            self._take_turns(worker)

    async def _gather(self, shard: ShardLanes[Item, Answer]) -> None:
        """Wait for more calls, until the batch is full, no new calls arrive, or linger_seconds have passed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._batching.linger_seconds
        count, quiet_turns = shard.waiting, 0
        while count < self._batching.size and quiet_turns < _QUIET_TURNS and loop.time() < deadline:
            turns = _QUIET_TURNS if await self._turn() else 1
            before, count = count, shard.waiting
            quiet_turns = quiet_turns + turns if count == before else 0

    def _next_batch(self, shard: ShardLanes[Item, Answer]) -> list[Lane[Item, Answer]]:
        """Take the calls of the next flush: an equal share of each ready lane, plus what small lanes leave over."""
        left = self._batching.size
        lanes: list[Lane[Item, Answer]] = []
        while shard.ready and left:
            lane = shard.ready.popleft()
            lane.is_ready = False
            shard.waiting -= len(lane.calls)
            left -= lane.take(-(-left // (1 + len(shard.ready))))
            lanes.append(lane)
        for lane in lanes if left else ():
            left -= lane.take(left)
        return lanes

    async def _answer(self, lanes: Sequence[Lane[Item, Answer]], *, wait: bool) -> int:
        """Flush the calls taken from the lanes, answer them, and put the lanes back; returns how many calls."""
        calls = [call for lane in lanes for call in lane.in_flight]
        spans = [call.span for call in calls if call.span is not None]
        answers: Sequence[Answer | Locked | Exception]
        try:
            with shared_span(self._name, spans, {"pulsa.batch.size": len(calls)}):
                answers = await self._flush([call.item for call in calls], wait=wait) if calls else ()
        except AccountBusy:
            answers = [LOCKED] * len(calls)
        except Exception as error:  # noqa: BLE001 - every call of the batch raises it
            answers = [error] * len(calls)
        locked = {id(call) for call, answer in zip(calls, answers, strict=True) if not call.answer(answer)}
        for lane in lanes:
            self._put_back(lane, [call for call in lane.in_flight if id(call) in locked] if locked else [])
        return len(calls)

    def _put_back(self, lane: Lane[Item, Answer], locked: Sequence[Call[Item, Answer]]) -> None:
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
            return
        shard_id = self._batching.shards.find(lane.organization_id)  # shards may have been split
        if shard_id is not None:
            lane.shard = self._shard(shard_id)
        if is_locked:
            worker = self._worker(lane.shard)
            worker.locked.append(lane)
            self._wait_for_locks(worker)
        else:
            lane.is_ready = True
            lane.shard.ready.append(lane)
            lane.shard.waiting += len(lane.calls)
            self._lead(lane.shard)

    def _wait_for_locks(self, worker: Worker[Item, Answer]) -> None:
        """Flush the worker's locked lanes, each by itself, as far as flushes may wait for locks."""
        while worker.locked and worker.lock_waits < max(1, self._batching.flushes // 2):
            lane = worker.locked.popleft()
            worker.lock_waits += 1
            worker.flushes += 1
            self._start(self._flush_locked(lane, worker))

    async def _flush_locked(self, lane: Lane[Item, Answer], worker: Worker[Item, Answer]) -> None:
        lane.take(self._batching.size)
        try:
            await self._answer([lane], wait=True)
        finally:
            worker.lock_waits -= 1
            worker.flushes -= 1
            for waiting in list(worker.locked):
                waiting.expire(self._batching.busy_seconds)
            self._wait_for_locks(worker)
            self._lead(lane.shard)
            self._take_turns(worker)


async def in_steps(
    calls: Sequence[Item],
    *,
    prepare: Callable[[Sequence[Item]], Sequence[Prepared | Exception]],
    decide: Callable[[Sequence[Prepared]], Awaitable[Sequence[Any]]],
    answer: Callable[[Any, Item], Answer],
) -> list[Answer | Locked | Exception]:
    """Prepare all calls, decide them together and answer each; return an answer, an error or LOCKED per call.

    An error that `prepare` returns for a call, or while answering it, affects only this call. AccountBusy is LOCKED for
    all.
    """
    prepared = prepare(calls)
    valid = [item for item in prepared if not isinstance(item, Exception)]
    try:
        decided: Iterator[Any] = iter(await decide(valid) if valid else ())
    except AccountBusy:
        decided = iter([LOCKED] * len(valid))
    except Exception as error:  # noqa: BLE001 - every call of this step ends with it
        decided = iter([error] * len(valid))
    results = [item if isinstance(item, Exception) else next(decided) for item in prepared]
    return [
        result if isinstance(result, Exception | Locked) else attempt(answer, result, call)
        for result, call in zip(results, calls, strict=True)
    ]


def attempt(function: Callable[..., Answer], *arguments: object) -> Answer | Exception:
    """What the function returns, or the error that it raises."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - only this call ends with it
        return error
