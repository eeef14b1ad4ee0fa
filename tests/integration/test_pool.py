"""Connections act as the application's role, and each comes to everybody who asks."""

import asyncio

import psycopg
import pytest

from server.database.pipeline import PipelineConnection
from server.database.pool import APPLICATION_ROLE, Pool, connection
from server.errors import DatabaseUnavailable
from tests.waiting import until


async def lent_again(pool: Pool) -> PipelineConnection:
    """The connection that is lent after it came back twice: it is at hand then, if the pool keeps one there."""
    for _ in range(2):
        lent = await pool.getconn()
        await pool.putconn(lent)
    return lent


async def test_connections_act_as_the_application(pool: Pool) -> None:
    async with connection(pool) as lent:
        row = await (await lent.execute("SELECT current_user")).fetchone()
    assert row == (APPLICATION_ROLE,)


async def test_the_connection_that_came_back_last_is_lent_next(pool: Pool) -> None:
    pool.seconds_at_hand = 1000
    await lent_again(pool)
    first, second = await pool.getconn(), await pool.getconn()
    await pool.putconn(second)
    assert await pool.getconn() is second
    await pool.putconn(first)
    assert await pool.getconn() is first


async def test_whoever_waits_gets_what_comes_back(one_connection: Pool) -> None:
    lent = await one_connection.getconn()
    waiting = [asyncio.create_task(one_connection.getconn()) for _ in range(3)]
    await until(lambda: one_connection.get_stats().get("requests_waiting") == 3)
    for task in waiting:
        await one_connection.putconn(lent)
        assert await task is lent
    await one_connection.putconn(lent)
    assert await one_connection.getconn() is lent


async def test_a_broken_connection_is_not_lent_again(one_connection: Pool) -> None:
    one_connection.seconds_at_hand = 1000
    await lent_again(one_connection)
    lent = await one_connection.getconn()
    await lent.close()
    await one_connection.putconn(lent)
    assert await one_connection.getconn() is not lent


async def terminate(connection: PipelineConnection, postgres: str) -> None:
    """End it at PostgreSQL's side."""
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as owner:
        await owner.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])


async def test_a_connection_that_was_lost_at_hand_fails_one_call(one_connection: Pool, postgres: str) -> None:
    one_connection.seconds_at_hand = 1000
    at_hand = await lent_again(one_connection)
    await terminate(at_hand, postgres)
    with pytest.raises(DatabaseUnavailable):
        async with connection(one_connection) as lent:
            await lent.execute("SELECT 1")
    assert await lent_again(one_connection) is not at_hand


async def test_the_connection_at_hand_is_checked_with_the_others(pool: Pool, postgres: str) -> None:
    pool.seconds_at_hand = 1000
    at_hand = await lent_again(pool)
    await terminate(at_hand, postgres)
    await pool.check()
    assert await pool.getconn() is not at_hand


async def test_every_connection_gets_its_turn(pool: Pool) -> None:
    pool.seconds_at_hand = 0.01
    lent = set()

    async def all_were_lent() -> bool:
        lent.add(await lent_again(pool))
        return len(lent) == pool.max_size

    await until(all_were_lent)


async def test_a_connection_that_is_too_old_is_replaced_however_often_it_is_lent(one_connection: Pool) -> None:
    one_connection.seconds_at_hand = 0.01
    old = await lent_again(one_connection)
    await one_connection.drain()  # what was made before is too old from now on, where psycopg sees it

    async def is_replaced() -> bool:
        return await lent_again(one_connection) is not old

    await until(is_replaced)


async def test_no_connection_stays_open_after_the_pool(pool: Pool) -> None:
    pool.seconds_at_hand = 1000
    lent = [await pool.getconn() for _ in range(pool.max_size)]
    for one in lent[1:]:
        await pool.putconn(one)
    await pool.close()
    await pool.putconn(lent[0])  # whose borrower took longer
    assert all(one.closed for one in lent)
