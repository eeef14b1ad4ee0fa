"""Balance streams, which an open Balance page reads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay

from server.credits.alerts import update_alerts
from server.credits.balances import Balance, Balances, BalanceStreams
from server.credits.ledger import adjust_credits
from server.errors import DatabaseUnavailable
from server.postgres.batcher import Batching
from server.postgres.pool import Pool
from tests.outages import database_away, end_sessions


def open_streams(pool: Pool, *, spending_seconds: float, repeat_seconds: float = 3600) -> BalanceStreams:
    balances = Balances(pool, low_balance_threshold=100, batching=Batching(size=500, linger_seconds=0.005))
    return BalanceStreams(balances, poll_seconds=0.01, spending_seconds=spending_seconds, repeat_seconds=repeat_seconds)


@pytest.fixture
def streams(pool: Pool) -> BalanceStreams:
    """Streams that send mere spending after an hour, which is never within a test."""
    return open_streams(pool, spending_seconds=3600)


async def adjust(pool: Pool, credits: int, organization_id: str = "acme") -> None:
    await adjust_credits(
        pool,
        organization_id,
        request_id=uuid4(),
        credits=credits,
        reason="test",
        created_by="test",
        low_balance_threshold=100,
        now=datetime.now(UTC),
    )


async def next_of(stream: AsyncIterator[Balance]) -> Balance:
    return await asyncio.wait_for(anext(stream), 10)


async def test_a_stream_begins_with_the_balance_also_without_an_account(streams: BalanceStreams) -> None:
    async with aclosing(streams.follow("unknown")) as stream:
        assert await next_of(stream) == Balance("unknown", 0, 100, 0, "OFF")


async def test_added_credits_and_a_crossed_threshold_are_sent_at_once_and_mere_spending_is_not(
    pool: Pool, streams: BalanceStreams
) -> None:
    await adjust(pool, 500)
    async with aclosing(streams.follow("acme")) as stream:
        assert (await next_of(stream)).available_credits == 500
        await adjust(pool, 1000)
        assert (await next_of(stream)).available_credits == 1500
        await adjust(pool, -100)
        await adjust(pool, -1350)
        crossed = await next_of(stream)
        assert (crossed.available_credits, crossed.low_balance) == (50, True)
        await update_alerts(
            pool, "acme", low_balance_threshold=10, alert_email=None, default_threshold=100, now=datetime.now(UTC)
        )
        moved = await next_of(stream)
        assert (moved.low_balance, moved.last_sequence) == (False, crossed.last_sequence)


async def test_spending_is_sent_after_spending_seconds(pool: Pool) -> None:
    streams = open_streams(pool, spending_seconds=0.05)
    await adjust(pool, 500)
    async with aclosing(streams.follow("acme")) as stream:
        seen = [await next_of(stream)]
        for _ in range(5):
            await adjust(pool, -1)
        while seen[-1].available_credits != 495:
            seen.append(await next_of(stream))
    assert [balance.last_sequence for balance in seen] == sorted({balance.last_sequence for balance in seen})


async def test_a_new_stream_includes_all_commits_before_it_while_others_are_open(
    pool: Pool, streams: BalanceStreams
) -> None:
    async with aclosing(streams.follow("acme")) as first:
        await next_of(first)
        for number in range(1, 21):
            await adjust(pool, 1)
            async with aclosing(streams.follow("acme")) as stream:
                assert (await next_of(stream)).last_sequence >= number


async def test_a_balance_that_does_not_change_is_sent_again(pool: Pool) -> None:
    async with aclosing(open_streams(pool, spending_seconds=3600, repeat_seconds=0.05).follow("acme")) as stream:
        first = await next_of(stream)
        assert [await next_of(stream) for _ in range(2)] == [first, first]


async def test_a_slow_reader_gets_the_latest_balance(pool: Pool, streams: BalanceStreams) -> None:
    async with aclosing(streams.follow("acme")) as slow, aclosing(streams.follow("acme")) as quick:
        await next_of(slow)
        await next_of(quick)
        for total in (100, 200, 300):
            await adjust(pool, 100)
            while (await next_of(quick)).available_credits != total:
                pass
        assert (await next_of(slow)).available_credits == 300


async def test_polling_stops_with_the_last_stream(streams: BalanceStreams) -> None:
    async with aclosing(streams.follow("acme")) as stream:
        await next_of(stream)
        assert streams._poller is not None
        assert not streams._poller.done()
    await asyncio.wait_for(streams._poller, 10)


async def test_lost_connections_do_not_end_a_stream(pool: Pool, streams: BalanceStreams, database_url: str) -> None:
    async with aclosing(streams.follow("acme")) as stream:
        await next_of(stream)
        await end_sessions(database_url)
        await adjust(pool, 100)
        assert (await next_of(stream)).available_credits == 100


async def test_a_lost_database_ends_streams_with_its_error_and_later_streams_work(
    streams: BalanceStreams, database_url: str
) -> None:
    stream = streams.follow("acme")
    await next_of(stream)
    async with database_away(database_url):
        with pytest.raises(DatabaseUnavailable):
            await next_of(stream)
    async for attempt in AsyncRetrying(retry=retry_if_exception_type(DatabaseUnavailable), stop=stop_after_delay(10)):
        with attempt:
            async with aclosing(streams.follow("acme")) as after:
                assert (await next_of(after)).organization_id == "acme"
