"""Streams of events: complete, in order, from any position, or ended by an error that says that some are missing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest

from server.errors import DatabaseUnavailable, EventsMissed, EventsOff
from server.events.log import Event, EventKind, append_events, disable_events, enable_events, remove_events
from server.events.streams import EventPage, EventStreams, Position
from server.postgres.pool import Pool, retry_transient, transaction
from tests.outages import database_away, end_sessions

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def open_streams(pool: Pool, *, repeat_seconds: float = 3600) -> EventStreams:
    return EventStreams(pool, poll_seconds=0.01, repeat_seconds=repeat_seconds)


@pytest.fixture
async def streams(pool: Pool) -> EventStreams:
    await enable_events(pool, "acme", now=NOW)
    return open_streams(pool)


async def append(pool: Pool, count: int = 1, organization_id: str = "acme", now: datetime = NOW) -> None:
    event = Event(organization_id, EventKind.LIMIT_REACHED, {"limit": "country"})
    async with transaction(pool) as connection:
        await append_events(connection, [event] * count, now=now)


async def next_of(stream: AsyncIterator[EventPage]) -> EventPage:
    return await asyncio.wait_for(anext(stream), 10)


async def read_until(stream: AsyncIterator[EventPage], number: int) -> list[int]:
    """The numbers of the next events, until that of this number."""
    found: list[int] = []
    while not found or found[-1] < number:
        found += [event.number for event in (await next_of(stream)).events]
    return found


async def test_a_stream_begins_with_its_position_and_goes_on_with_each_event(pool: Pool, streams: EventStreams) -> None:
    await append(pool, 3)
    async with aclosing(streams.follow("acme", None)) as stream:
        assert await next_of(stream) == EventPage((), Position(3, NOW))
        await append(pool, 2)
        assert await read_until(stream, 5) == [4, 5]
        await append(pool)
        page = await next_of(stream)
    assert page.position == Position(6, NOW)
    assert [(event.kind, event.details) for event in page.events] == [("LIMIT_REACHED", {"limit": "country"})]


async def test_a_stream_resumes_from_any_position_while_others_are_ahead(pool: Pool, streams: EventStreams) -> None:
    await append(pool, 1200)
    async with aclosing(streams.follow("acme", None)) as ahead:
        await next_of(ahead)
        for start in (0, 499, 1199, 1200):
            async with aclosing(streams.follow("acme", Position(start))) as stream:
                assert (await next_of(stream)).position.number == start
                await append(pool)
                newest = (await read_until(ahead, 1201))[-1]
                assert await read_until(stream, newest) == list(range(start + 1, newest + 1))


async def test_a_stream_that_is_resumed_on_a_replica_that_is_behind_waits_for_it(pool: Pool) -> None:
    await enable_events(pool, "acme", now=NOW)
    behind = EventStreams(pool, poll_seconds=3600, repeat_seconds=3600)
    async with aclosing(behind.follow("acme", None)) as first:
        await next_of(first)
        await append(pool, 2)
        async with aclosing(behind.follow("acme", Position(2, NOW))) as stream:
            assert (await next_of(stream)).position == Position(2, NOW)
            await behind._poll_once()
            await append(pool)
            await behind._poll_once()
            assert await read_until(stream, 3) == [3]
            assert await read_until(first, 3) == [1, 2, 3]


async def test_a_stream_from_the_oldest_event_begins_with_the_first_that_is_kept(
    pool: Pool, streams: EventStreams
) -> None:
    for day in range(4):
        await append(pool, now=NOW + timedelta(days=day))
    async for _ in remove_events(pool, before=NOW + timedelta(days=2), limit=500):
        pass
    async with aclosing(streams.follow("acme", None, from_oldest=True)) as stream:
        assert (await next_of(stream)).position.number == 2
        assert await read_until(stream, 4) == [3, 4]


@pytest.mark.parametrize("position", [Position(1), Position(9), Position(3, NOW - timedelta(seconds=1))])
async def test_a_position_that_is_not_of_the_stored_events_is_refused(
    pool: Pool, streams: EventStreams, position: Position
) -> None:
    for day in range(4):
        await append(pool, now=NOW + timedelta(days=day))
    async for _ in remove_events(pool, before=NOW + timedelta(days=2), limit=500):
        pass
    with pytest.raises(EventsMissed):
        await next_of(streams.follow("acme", position))


async def test_an_open_stream_ends_when_events_were_off_meanwhile(pool: Pool, streams: EventStreams) -> None:
    async with aclosing(streams.follow("acme", None)) as stream:
        await next_of(stream)
        await disable_events(pool, "acme", now=NOW)
        await enable_events(pool, "acme", now=NOW)
        await append(pool)
        with pytest.raises(EventsMissed):
            await next_of(stream)


async def test_a_slow_reader_misses_no_event(pool: Pool, streams: EventStreams) -> None:
    async with aclosing(streams.follow("acme", None)) as slow, aclosing(streams.follow("acme", None)) as quick:
        await next_of(slow)
        await next_of(quick)
        for number in range(1, 6):
            await append(pool)
            await read_until(quick, number)
        assert await read_until(slow, 5) == [1, 2, 3, 4, 5]


async def test_without_events_the_position_is_sent_again(pool: Pool) -> None:
    await enable_events(pool, "acme", now=NOW)
    async with aclosing(open_streams(pool, repeat_seconds=0.05).follow("acme", None)) as stream:
        first = await next_of(stream)
        assert [await next_of(stream) for _ in range(2)] == [first, first]


async def test_without_events_there_is_no_stream(pool: Pool, streams: EventStreams) -> None:
    await disable_events(pool, "acme", now=NOW)
    for organization_id in ("acme", "unknown"):
        with pytest.raises(EventsOff):
            await next_of(streams.follow(organization_id, None))


async def test_lost_connections_end_no_stream_and_a_lost_database_ends_it_with_its_error(
    pool: Pool, streams: EventStreams, database_url: str
) -> None:
    async with aclosing(streams.follow("acme", None)) as stream:
        await next_of(stream)
        await end_sessions(database_url)
        await retry_transient(lambda: append(pool))
        assert await read_until(stream, 1) == [1]
        async with database_away(database_url):
            with pytest.raises(DatabaseUnavailable):
                await next_of(stream)


async def test_polling_stops_with_the_last_stream(streams: EventStreams) -> None:
    async with aclosing(streams.follow("acme", None)) as stream:
        await next_of(stream)
        assert streams._poller is not None
        assert not streams._poller.done()
    await asyncio.wait_for(streams._poller, 10)
