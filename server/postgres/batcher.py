"""The batcher: group commit. Concurrent calls share a flush, which is one transaction of several items."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_QUIET_TURNS: Final = 30
"""Turns of the event loop without a new call after which a batch is flushed: about 0.2 ms of an idle loop.

A busy loop needs several turns per arriving call. With 4 turns a busy server made batches of two calls and spent most
of its time on flushes: GetBalance was half as fast.
"""
_SLEEP_SECONDS: Final = 0.001


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


class Batcher(Generic[Item, Answer]):
    """Gathers concurrent `submit` calls into batches and passes each batch to `flush`, one flush at a time.

    A lone call is flushed at once, together with calls of the same turn of the event loop. Calls that arrive during a
    flush form the next batch. It is flushed when it is full, or when no new call has arrived for _QUIET_TURNS turns: a
    batch grows while the loop is busy with new calls, when large batches pay off, and is flushed when the loop is idle.

    `flush` gets 1 to `size` items and returns one answer or one error per item, in order. When it raises, all its items
    fail with that error.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        batching: Batching,
        *,
        turn: LoopTurn = loop_turn,
    ) -> None:
        self._flush = flush
        self._size = batching.size
        self._linger_seconds = batching.linger_seconds
        self._by_organization = batching.by_organization
        self._turn = turn
        self._waiting: list[_Call[Item, Answer]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._last_size = 0

    async def submit(self, organization_id: str, item: Item) -> Answer:
        """Wait for the flush of the item; returns the item's answer or raises its error.

        A caller that is cancelled before the flush withdraws its item. A caller that is cancelled during the flush does
        not stop it, and does not learn its result.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(organization_id, item, future))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_waiting())
        return await future

    async def drain(self) -> None:
        """Wait until no call is waiting or in flight, including calls that are submitted meanwhile."""
        while self._flushing is not None:
            await asyncio.wait([self._flushing])

    async def _flush_waiting(self) -> None:
        """Flush batches until no call is waiting."""
        try:
            if self._last_size > 1:  # after a batch of several, more calls are likely to follow the first
                await self._gather()
            while self._waiting:
                batch = self._next_batch()
                self._last_size = len(batch)
                await self._answer(batch)
                if self._waiting:
                    await self._gather()
        finally:
            self._flushing = None

    async def _gather(self) -> None:
        """Wait for more calls, until the batch is full, no new calls arrive, or linger_seconds have passed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._linger_seconds
        count, quiet_turns = len(self._waiting), 0
        while count < self._size and quiet_turns < _QUIET_TURNS and loop.time() < deadline:
            turns = _QUIET_TURNS if await self._turn() else 1
            before, count = count, len(self._waiting)
            quiet_turns = quiet_turns + turns if count == before else 0

    def _next_batch(self) -> "list[_Call[Item, Answer]]":
        """Remove the calls of the next flush from the waiting ones, oldest first."""
        if not self._by_organization:
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            return batch
        organization_id = self._waiting[0].organization_id
        batch = [call for call in self._waiting if call.organization_id == organization_id][: self._size]
        taken = set(map(id, batch))
        self._waiting = [call for call in self._waiting if id(call) not in taken]
        return batch

    async def _answer(self, batch: "Sequence[_Call[Item, Answer]]") -> None:
        calls = [call for call in batch if not call.future.done()]  # a cancelled call is not charged
        if not calls:
            return
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._flush([call.item for call in calls])
        except Exception as error:  # noqa: BLE001 - every call of the batch raises it
            answers = [error] * len(calls)
        for call, answer in zip(calls, answers, strict=True):
            if call.future.done():
                continue
            if isinstance(answer, Exception):
                call.future.set_exception(answer)
            else:
                call.future.set_result(answer)


class _Call(NamedTuple, Generic[Item, Answer]):
    """A waiting call."""

    organization_id: str
    item: Item
    future: asyncio.Future[Answer]
