"""Turns many calls at once into few transactions: group commit for whole calls."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from server.database.pause import Pause, pause

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Result = TypeVar("Result")
Foresee = Callable[[Sequence[Any]], None]
"""Tells the batcher the answers that a flush is going to give, one for each item."""

_NO_ANSWER: Final = object()
_QUIET_TURNS = 30
"""Turns of the event loop without anybody new, after which nobody is waited for: some 0.2 ms of a loop that is idle.

A busy loop takes several turns for each call that comes in. With 4 a busy server made batches of two calls, and spent
most of its time on batches: GetBalance was half as fast.
"""


@dataclass(frozen=True, slots=True)
class Batching:
    """How calls are gathered."""

    size: int = 96
    """Calls that share a flush, at most; so many do not wait for more.

    The calls of a batch should fit into the processor's caches together. On two shared cores SendOtp was slower when
    64 or 128 did not wait for more, and with 256 to a flush at three times its capacity by a tenth.
    """
    linger_seconds: float = 0.02
    """How long a batch gathers at most. A lone call never waits."""
    by_organization: bool = False
    """Only calls of one organization share a flush: on Citus a transaction stays on one shard."""


class Batcher(Generic[Item, Answer]):
    """Gathers concurrent `submit` calls and serves each gathering with one call of `flush`, one after another.

    A lone call goes at once, with those that come in the same turn of the event loop. What comes while a flush is in
    flight leaves together after it: once the batch is full, or nobody new has come for a moment. So a batch waits while
    the loop is busy letting callers in, which is when large batches pay, and goes when it has nothing else to do.

    `flush` gets 1 to `size` items and gives one answer or one error for each, in order; when it raises, all its
    items fail with that error. It also gets `foresee`: once it knows the answers, and only waits for the database to
    keep them, it may call that to have them finished meanwhile. The callers get them when it returns the same ones.

    A batch is worked on step by step: all items are prepared, then flushed, then all answers finished. What a step
    needs is in the processor's caches when it is done in a row; SendOtp cost a quarter more when each caller prepared
    and finished its own.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item], Foresee], Awaitable[Sequence[Answer | Exception]]],
        batching: Batching,
        *,
        pause: Pause = pause,
    ) -> None:
        self._flush = flush
        self._size = batching.size
        self._linger_seconds = batching.linger_seconds
        self._by_organization = batching.by_organization
        self._pause = pause
        self._waiting: list[_Call] = []
        self._serving: asyncio.Task[None] | None = None
        self._last_size = 0

    async def submit(
        self, organization_id: str, prepare: Callable[[], Item], finish: Callable[[Answer], Result]
    ) -> Result:
        """What `finish` makes of the answer for the item of `prepare`, once the flush that carried it has ended.

        Raises the item's error, or what either of them raises. Nothing is done for a caller that is cancelled while it
        waits; cancelling one whose flush has begun does not stop that: whether it was served stays unknown to it.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(organization_id, prepare, finish, future))
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
        """Let more come in, until the batch is full or nobody new comes."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._linger_seconds
        count, quiet_turns = len(self._waiting), 0
        while count < self._size and quiet_turns < _QUIET_TURNS and loop.time() < deadline:
            turns = _QUIET_TURNS if await self._pause() else 1
            before, count = count, len(self._waiting)
            quiet_turns = quiet_turns + turns if count == before else 0

    def _next_batch(self) -> list["_Call"]:
        """Take the calls of the next flush off the waiting ones, oldest first."""
        if not self._by_organization:
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            return batch
        organization_id = self._waiting[0].organization_id
        batch = [call for call in self._waiting if call.organization_id == organization_id][: self._size]
        taken = set(map(id, batch))
        self._waiting = [call for call in self._waiting if id(call) not in taken]
        return batch

    async def _answer(self, batch: Sequence["_Call"]) -> None:
        calls: list[_Call] = []
        items = []

        def foresee(answers: Sequence[Any]) -> None:
            for call, answer in zip(calls, answers, strict=True):
                call.foresee(answer)

        for call in batch:
            if call.future.done():  # its caller was cancelled while it waited: nothing is to be done or charged for it
                continue
            try:
                items.append(call.prepare())
                calls.append(call)
            except Exception as error:  # noqa: BLE001 - its caller gets it, and its neighbours do not
                call.fail(error)
        try:
            answers = await self._flush(items, foresee) if items else []
        except Exception as error:  # noqa: BLE001 - every caller of the batch gets it
            answers = [error] * len(items)
        for call, answer in zip(calls, answers, strict=True):
            call.end(answer)


@dataclass(slots=True)
class _Call:
    """A caller that waits."""

    organization_id: str
    prepare: Callable[[], Any]
    finish: Callable[[Any], Any]
    future: asyncio.Future[Any]
    foreseen: Any = _NO_ANSWER
    result: Any = None
    """What `finish` made of the foreseen answer."""

    def foresee(self, answer: Any) -> None:
        """Finish the answer that is to be expected."""
        if not isinstance(answer, Exception) and not self.future.done():
            with suppress(Exception):  # raised again when the answer is given
                self.result = self.finish(answer)
                self.foreseen = answer

    def end(self, answer: Any) -> None:
        """Give the caller what is made of the answer, unless it was cancelled."""
        if isinstance(answer, Exception):
            self.fail(answer)
        elif not self.future.done():
            try:
                self.future.set_result(self.result if answer is self.foreseen else self.finish(answer))
            except Exception as error:  # noqa: BLE001 - its caller gets it, and its neighbours do not
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Give the caller the error."""
        if not self.future.done():
            self.future.set_exception(error)


def as_it_is(answer: Answer) -> Answer:
    """Finishes nothing."""
    return answer
