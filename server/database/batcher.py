"""Turns many calls at once into few transactions: group commit for whole calls."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_MANY = 64
"""Items that no longer wait for more of them. On two shared cores SendOtp was faster so than with 24 and with 256."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How calls are gathered."""

    size: int = 256
    """Calls that share a flush, at most."""
    linger_seconds: float = 0.02
    """How long a batch gathers at most; the fewer the last one held, the shorter. A lone call never waits."""
    flushes_at_once: int = 1
    by_organization: bool = False
    """Only calls of one organization share a flush: on Citus a transaction stays on one shard."""


class Batcher(Generic[Item, Answer]):
    """Gathers concurrent `submit` calls and serves each gathering with one call of `flush`.

    A lone call goes at once, with those that come in the same turn of the event loop. While `flushes_at_once` flushes
    are in flight, further calls gather, and leave together a while after one has ended, or as soon as they are many.
    `flush` gets 1 to `size` items and gives one answer or one error for each, in order; when it raises, all its
    items fail with that error.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        batching: Batching,
        *,
        organization_of: Callable[[Item], str],
    ) -> None:
        self._flush = flush
        self._size = batching.size
        self._many = min(batching.size, _MANY)
        self._linger_seconds = batching.linger_seconds
        self._flushes_at_once = batching.flushes_at_once
        self._key = organization_of if batching.by_organization else None
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._flushing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._last_size = 0

    async def submit(self, item: Item) -> Answer:
        """The answer for this item, once the flush that carried it has ended; raises the item's error.

        Cancelling the caller does not stop the flush: whether the item was served stays unknown to it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._many:
            self._start_flushes()
        elif self._timer is None and len(self._flushing) < self._flushes_at_once:
            self._timer = loop.call_soon(self._lingered)
        return await future

    async def drain(self) -> None:
        """Wait until nothing waits and nothing is in flight; new items submitted meanwhile are served as well."""
        while self._flushing or self._waiting:
            self._start_flushes()
            await asyncio.wait(self._flushing)

    def _start_flushes(self) -> None:
        while self._waiting and len(self._flushing) < self._flushes_at_once:
            batch = self._next_batch()
            self._last_size = len(batch)
            task = asyncio.create_task(self._serve(batch))
            self._flushing.add(task)
            task.add_done_callback(self._ended)

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """Take the items of the next flush off the waiting ones, oldest first."""
        if self._key is None:
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            return batch
        key = self._key(self._waiting[0][0])
        batch = [entry for entry in self._waiting if self._key(entry[0]) == key][: self._size]
        taken = {id(entry) for entry in batch}
        self._waiting = [entry for entry in self._waiting if id(entry) not in taken]
        return batch

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._flushing.discard(task)
        if len(self._waiting) >= self._many:
            self._start_flushes()
            return
        if not self._waiting or self._timer is not None:
            return
        # Callers that were just answered are about to call again: waiting for them makes larger, cheaper batches. How
        # many there are shows in how many there were.
        fullness = min(1.0, self._last_size / self._many)
        self._timer = asyncio.get_running_loop().call_later(self._linger_seconds * fullness, self._lingered)

    def _lingered(self) -> None:
        self._timer = None
        self._start_flushes()

    async def _serve(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._flush([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # the caller was cancelled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
