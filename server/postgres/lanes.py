"""What waits in a batcher: calls, in a lane for each organization, by shard and by worker."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from server.errors import AccountBusy
from server.traces import Span

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_UNANSWERED: Final = AssertionError("an item was not answered")


class Locked:
    """The answer to an item whose rows another transaction has locked: the batcher flushes it again."""


LOCKED: Final = Locked()


class Group(Generic[Answer]):
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


class Place(NamedTuple, Generic[Answer]):
    """One item's place in a group: what a future is to a single call."""

    group: Group[Answer]
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


class Call(NamedTuple, Generic[Item, Answer]):
    """A waiting call."""

    item: Item
    future: asyncio.Future[Answer] | Place[Answer]
    start: float
    """In seconds of time.monotonic()."""
    span: Span | None
    """None when the call is not sampled."""

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
class Worker(Generic[Item, Answer]):
    """The flushes to one worker."""

    turns: "deque[ShardLanes[Item, Answer]]" = field(default_factory=deque)
    """Shards with ready lanes that nobody flushes, in the order in which they will be."""
    flushes: int = 0
    """Flushes in flight, and batches that gather."""
    is_led: bool = False
    """Whether the shards behind wait for one of them, which neither was overtaken nor waits for locks."""
    locked: "deque[Lane[Item, Answer]]" = field(default_factory=deque)
    """Lanes with calls, none in flight, whose rows were locked a moment ago."""
    lock_waits: int = 0
    """Flushes in flight that may wait for locks."""


@dataclass(slots=True, eq=False)
class ShardLanes(Generic[Item, Answer]):
    """The lanes of one shard."""

    shard_id: int
    ready: "deque[Lane[Item, Answer]]" = field(default_factory=deque)
    """Lanes with calls, none in flight, whose rows are not known to be locked."""
    waiting: int = 0
    """Calls in the ready lanes."""
    last_size: int = 0
    leader: asyncio.Task[None] | None = None
    """The task that flushes ready lanes, one batch after another, until its flush is overtaken."""
    waits_for_turn: bool = False
    """Whether it is among those that wait until another flush may be in flight."""


@dataclass(slots=True, eq=False)
class Lane(Generic[Item, Answer]):
    """The calls of one organization."""

    organization_id: str
    shard: ShardLanes[Item, Answer]
    calls: deque[Call[Item, Answer]] = field(default_factory=deque)
    in_flight: list[Call[Item, Answer]] = field(default_factory=list)
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
