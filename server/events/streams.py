"""Streams of events. One poller per process asks for the newest numbers of all streams, and reads new events once.

A stream that is behind, such as one that resumes, reads for itself until it has reached the newest events.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from server.background import until_done
from server.errors import EventsMissed, EventsOff
from server.postgres.columns import TableColumns, texts
from server.postgres.pool import Pool, acquire, pipelined_transaction, retry_transient
from server.postgres.queries import load_queries

PAGE_EVENTS: Final = 500
"""The most events of one message, and of one read."""
_READS_AT_ONCE: Final = 2
"""Of streams that are behind: thousands resume when a server ends, and must leave connections to calls."""
_POLLED_ORGANIZATIONS: Final = 100
"""Whose new events are read in one transaction."""


class StoredEvent(NamedTuple):
    """An event as it is stored."""

    number: int
    kind: str
    """An EventKind, or that of a newer version."""
    details: Mapping[str, Any]
    create_time: datetime


class Position(NamedTuple):
    """Until where a reader has got."""

    number: int
    """0: before the first event."""
    create_time: datetime | None = None
    """Of the event with this number: after a restore of the database another one has it. None: not known."""


class EventPage(NamedTuple):
    """The next events of a stream, oldest first; none to keep it alive."""

    events: Sequence[StoredEvent]
    position: Position
    """After them."""


SQL = load_queries(__file__, event=TableColumns(StoredEvent))


@dataclass(slots=True, eq=False)
class _Feed:
    """An organization's newest events, for all of its streams."""

    last_number: int
    """Of the newest event that the poller has read."""
    newest: Sequence[StoredEvent] = ()
    """Those of its last read. Streams take them at once; one that is behind reads from the database."""
    readers: int = 0
    error: Exception | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, events: Sequence[StoredEvent]) -> None:
        """Add the events after last_number."""
        self.newest, self.last_number = events, events[-1].number
        self.wake()

    def wake(self) -> None:
        """Let the streams that wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Wait until the feed has changed; False after so long without a change. Raises the poller's error."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        if self.error:
            raise self.error
        return True

    def after(self, number: int) -> Sequence[StoredEvent] | None:
        """The events after a number; None when they are not in memory."""
        if number >= self.last_number:
            return ()
        if not self.newest or self.newest[0].number > number + 1:
            return None
        return self.newest[number + 1 - self.newest[0].number :]


class EventStreams:
    """Streams of the events of organizations, for any number of readers."""

    def __init__(self, pool: Pool, *, poll_seconds: float, repeat_seconds: float) -> None:
        """repeat_seconds is the longest time without a page: then an empty one is yielded."""
        self._pool = pool
        self._poll_seconds = poll_seconds
        self._repeat_seconds = repeat_seconds
        self._feeds: dict[str, _Feed] = {}
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._poller: asyncio.Task[None] | None = None

    async def newest(self, organization_id: str) -> Position:
        """The position after the newest event. Raises EventsOff."""
        return await retry_transient(lambda: self._newest(organization_id))

    async def follow(
        self, organization_id: str, position: Position | None, *, from_oldest: bool = False
    ) -> AsyncGenerator[EventPage, None]:
        """Yield the position, then the events after it; ends only when the caller closes it.

        Without a position it begins after the newest event, or with the oldest one. Raises EventsOff, EventsMissed when
        an event after the position is not stored, and DatabaseUnavailable.
        """
        async with self._reads:
            newest = await self.newest(organization_id)
            if position is None:
                position = await self._before_oldest(organization_id, newest) if from_oldest else newest
            elif not await self._is_known(organization_id, position, newest):
                raise EventsMissed
        feed = self._feeds.setdefault(organization_id, _Feed(newest.number))
        feed.readers += 1
        try:
            self._start_poller()
            yield EventPage((), position)
            while True:
                events = feed.after(position.number)
                if events is None:
                    async with self._reads:
                        events = await self._read(organization_id, position.number)
                    if not events or events[0].number != position.number + 1:
                        raise EventsMissed
                if events:
                    position = Position(events[-1].number, events[-1].create_time)
                    yield EventPage(events, position)
                elif not await feed.wait(self._repeat_seconds):
                    yield EventPage((), position)
        finally:
            feed.readers -= 1
            if not feed.readers and self._feeds.get(organization_id) is feed:
                del self._feeds[organization_id]

    def _start_poller(self) -> None:
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(until_done("event streams", self._poll))

    async def _poll(self) -> None:
        try:
            while self._feeds:
                await retry_transient(self._poll_once)
                await asyncio.sleep(self._poll_seconds)
        except Exception as error:  # noqa: BLE001 - every stream raises it
            for feed in self._feeds.values():
                feed.error = error
                feed.wake()
            self._feeds.clear()

    async def _poll_once(self) -> None:
        feeds = dict(self._feeds)
        async with acquire(self._pool) as connection:
            rows = await connection.execute(SQL.read_last_numbers, {"organization_ids": texts(feeds)})
            numbers: dict[str, int] = dict(await rows.fetchall())
        behind = [own for own, feed in feeds.items() if numbers.get(own, 0) > feed.last_number]
        for start in range(0, len(behind), _POLLED_ORGANIZATIONS):
            await self._read_new({own: feeds[own] for own in behind[start : start + _POLLED_ORGANIZATIONS]})

    async def _read_new(self, feeds: Mapping[str, _Feed]) -> None:
        async with pipelined_transaction(self._pool) as pipeline:
            queued = [
                (feed, await pipeline.execute(SQL.read_events, _page_after(own, feed.last_number)))
                for own, feed in feeds.items()
            ]
            for feed, rows in queued:
                if events := [StoredEvent(*row) for row in await rows.fetchall()]:
                    feed.add(events)

    async def _newest(self, organization_id: str) -> Position:
        async with acquire(self._pool) as connection:
            rows = await connection.execute(SQL.read_newest, {"organization_id": organization_id})
            newest = await rows.fetchone()
        if newest is None:
            raise EventsOff
        return Position(*newest)

    async def _before_oldest(self, organization_id: str, newest: Position) -> Position:
        events = await self._read(organization_id, 0, limit=1)
        return Position(events[0].number - 1) if events else newest

    async def _is_known(self, organization_id: str, position: Position, newest: Position) -> bool:
        """Whether a position is of this stream, and every event after it is stored."""
        if position.number > newest.number:
            return False
        near = {event.number: event for event in await self._read(organization_id, position.number - 1, limit=2)}
        own = near.get(position.number)
        if own and position.create_time not in (None, own.create_time):
            return False
        return position.number == newest.number or position.number + 1 in near

    async def _read(self, organization_id: str, number: int, *, limit: int = PAGE_EVENTS) -> list[StoredEvent]:
        """The next events after a number."""

        async def once() -> list[StoredEvent]:
            async with acquire(self._pool) as connection:
                rows = await connection.execute(SQL.read_events, _page_after(organization_id, number, limit))
                return [StoredEvent(*row) for row in await rows.fetchall()]

        return await retry_transient(once)


def _page_after(organization_id: str, number: int, limit: int = PAGE_EVENTS) -> dict[str, object]:
    return {"organization_id": organization_id, "number": number, "limit": limit}
