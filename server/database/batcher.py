"""Turns many calls at once into few transactions: group commit for whole calls."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_MANY = 64
"""Items that do not wait for more of them: on two shared cores SendOtp was slower with 16, with 32 and with 128."""
_QUIET_TURNS = 30
"""Turns of the event loop without anybody new, after which nobody is waited for: some 0.2 ms of a loop that is idle.

A busy loop takes several turns for each call that comes in. With 4 a busy server made batches of two calls, and spent
most of its time on batches: GetBalance was half as fast.
"""


@dataclass(frozen=True, slots=True)
class Batching:
    """How calls are gathered."""

    size: int = 256
    """Calls that share a flush, at most."""
    linger_seconds: float = 0.02
    """How long a batch gathers at most. A lone call never waits."""
    by_organization: bool = False
    """Only calls of one organization share a flush: on Citus a transaction stays on one shard."""


class Batcher(Generic[Item, Answer]):
    """Gathers concurrent `submit` calls and serves each gathering with one call of `flush`, one after another.

    A lone call goes at once, with those that come in the same turn of the event loop. What comes while a flush is in
    flight leaves together after it: once they are many, or nobody new has come for a moment. So a batch waits while the
    loop is busy letting callers in, which is when large batches pay, and goes when the loop has nothing else to do.

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
        self._key = organization_of if batching.by_organization else None
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._serving: asyncio.Task[None] | None = None
        self._last_size = 0

    async def submit(self, item: Item) -> Answer:
        """The answer for this item, once the flush that carried it has ended; raises the item's error.

        Cancelling the caller does not stop the flush: whether the item was served stays unknown to it.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return await future

    async def drain(self) -> None:
        """Wait until nothing waits and nothing is in flight; new items submitted meanwhile are served as well."""
        while self._serving is not None:
            await asyncio.wait([self._serving])

    async def _serve(self) -> None:
        """Serve whoever waits, until nobody does."""
        try:
            if self._last_size > 1:  # who comes first after a batch is not alone
                await self._gather()
            while self._waiting:
                batch = self._next_batch()
                self._last_size = len(batch)
                await self._answer(batch)
                if self._waiting:
                    await self._gather()
        finally:
            self._serving = None

    async def _gather(self) -> None:
        """Let more come in, until they are many or nobody new comes."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._linger_seconds
        count, quiet_turns = len(self._waiting), 0
        while count < self._many and quiet_turns < _QUIET_TURNS and loop.time() < deadline:
            await asyncio.sleep(0)
            before, count = count, len(self._waiting)
            quiet_turns = quiet_turns + 1 if count == before else 0

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

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
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
