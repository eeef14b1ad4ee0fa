"""The streams behind an open Balance page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay

from server.credits.adjustments import adjust_credits
from server.credits.alerts import update_alerts
from server.credits.balance_watch import BalanceWatch
from server.credits.balances import Balance, Balances
from server.database.batcher import Batching
from server.database.pool import Pool
from server.errors import DatabaseUnavailable


def watch_with(pool: Pool, *, spending_seconds: float) -> BalanceWatch:
    balances = Balances(pool, low_balance_threshold=100, batching=Batching(size=500, linger_seconds=0.005))
    return BalanceWatch(balances, poll_seconds=0.01, spending_seconds=spending_seconds)


@pytest.fixture
def watch(pool: Pool) -> BalanceWatch:
    """A watch that shows mere spending so late that these tests never see it."""
    return watch_with(pool, spending_seconds=3600)


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


async def test_the_balance_comes_at_once_also_when_there_is_no_account(watch: BalanceWatch) -> None:
    async with aclosing(watch.follow("nobody")) as stream:
        assert await next_of(stream) == Balance("nobody", 0, 100, 0)


async def test_credits_that_come_and_a_crossed_line_are_shown_and_mere_spending_waits(
    pool: Pool, watch: BalanceWatch
) -> None:
    await adjust(pool, 500)
    async with aclosing(watch.follow("acme")) as stream:
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


async def test_spending_is_shown_in_the_end(pool: Pool) -> None:
    watch = watch_with(pool, spending_seconds=0.05)
    await adjust(pool, 500)
    async with aclosing(watch.follow("acme")) as stream:
        seen = [await next_of(stream)]
        for _ in range(5):
            await adjust(pool, -1)
        while seen[-1].available_credits != 495:
            seen.append(await next_of(stream))
    assert [balance.last_sequence for balance in seen] == sorted({balance.last_sequence for balance in seen})


async def test_a_new_stream_sees_what_was_committed_before_it_while_others_watch(
    pool: Pool, watch: BalanceWatch
) -> None:
    async with aclosing(watch.follow("acme")) as first:
        await next_of(first)
        for number in range(1, 21):
            await adjust(pool, 1)
            async with aclosing(watch.follow("acme")) as stream:
                assert (await next_of(stream)).last_sequence >= number


async def test_a_slow_reader_gets_the_latest(pool: Pool, watch: BalanceWatch) -> None:
    async with aclosing(watch.follow("acme")) as slow, aclosing(watch.follow("acme")) as quick:
        await next_of(slow)
        await next_of(quick)
        for total in (100, 200, 300):
            await adjust(pool, 100)
            while (await next_of(quick)).available_credits != total:
                pass
        assert (await next_of(slow)).available_credits == 300


async def test_nobody_looks_while_nobody_watches(watch: BalanceWatch) -> None:
    async with aclosing(watch.follow("acme")) as stream:
        await next_of(stream)
        assert watch._poller is not None
        assert not watch._poller.done()
    await asyncio.wait_for(watch._poller, 10)


async def test_a_lost_database_ends_streams_with_its_error_and_later_streams_work(
    watch: BalanceWatch, database_url: str
) -> None:
    stream = watch.follow("acme")
    await next_of(stream)
    async with await psycopg.AsyncConnection.connect(database_url) as owner:
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(DatabaseUnavailable):
        await next_of(stream)
    # A connection that dies a little later than the others may end one more.
    async for attempt in AsyncRetrying(retry=retry_if_exception_type(DatabaseUnavailable), stop=stop_after_delay(10)):
        with attempt:
            async with aclosing(watch.follow("acme")) as after:
                assert (await next_of(after)).organization_id == "acme"
