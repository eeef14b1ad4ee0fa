"""Balances of many calls are read in few statements, and are never older than the call."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from server.credits.balances import Balance, Balances
from server.credits.ledger import adjust_credits
from server.postgres.batcher import Batching
from server.postgres.pool import Pool, acquire


@pytest.fixture
async def balances(pool: Pool) -> AsyncIterator[Balances]:
    balances = Balances(pool, low_balance_threshold=100, batching=Batching(size=500, linger_seconds=0.005))
    yield balances
    await balances.drain()


async def adjust(pool: Pool, organization_id: str, credits: int) -> None:
    await adjust_credits(
        pool,
        organization_id,
        request_id=uuid4(),
        credits=credits,
        reason="test",
        created_by="test",
        low_balance_threshold=50,
        now=datetime.now(UTC),
    )


async def committed_transactions(pool: Pool) -> int:
    """How many transactions the database has committed."""
    async with acquire(pool) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        row = await (
            await connection.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        ).fetchone()
    assert row is not None
    return int(row[0])


async def test_an_unknown_organization_has_no_credits_and_a_low_balance(balances: Balances) -> None:
    balance = await balances.get("unknown")
    assert balance == Balance("unknown", 0, 100, 0, "OFF")
    assert balance.low_balance


async def test_an_account_has_its_own_threshold(pool: Pool, balances: Balances) -> None:
    await adjust(pool, "acme", 50)
    balance = await balances.get("acme")
    assert balance == Balance("acme", 50, 50, 1, "OFF")
    assert not balance.low_balance


async def test_many_callers_each_get_their_own_balance_from_few_statements(pool: Pool, balances: Balances) -> None:
    for number in range(20):
        await adjust(pool, f"organization-{number}", 1000 + number)
    before = await committed_transactions(pool)
    answers = await asyncio.gather(*(balances.get(f"organization-{number % 25}") for number in range(1000)))
    used = await committed_transactions(pool) - before
    assert [answer.organization_id for answer in answers] == [f"organization-{number % 25}" for number in range(1000)]
    assert [answer.available_credits for answer in answers[:25]] == [1000 + number for number in range(20)] + [0] * 5
    assert used <= 50


async def test_a_balance_is_never_older_than_the_call(pool: Pool, balances: Balances) -> None:
    async def read_repeatedly(stop: asyncio.Event) -> None:
        while not stop.is_set():
            await balances.get("acme")

    stop = asyncio.Event()
    readers = [asyncio.create_task(read_repeatedly(stop)) for _ in range(8)]
    try:
        for number in range(1, 51):
            await adjust(pool, "acme", 1)
            assert (await balances.get("acme")).last_sequence >= number
    finally:
        stop.set()
        await asyncio.gather(*readers)
