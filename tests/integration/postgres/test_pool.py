"""The pool: its connections act as the application's role, and broken, lost and old ones are replaced."""

import asyncio

import psycopg
import pytest
from psycopg.adapt import Dumper

from server.errors import DatabaseUnavailable
from server.logs import configure_logging
from server.postgres.columns import _ArrayDumper
from server.postgres.pipeline import PipelineConnection
from server.postgres.pool import APPLICATION_ROLE, Pool, acquire
from tests.waiting import until


async def get_and_return(pool: Pool) -> PipelineConnection:
    """The connection that the pool lends next, returned to it."""
    connection = await pool.getconn()
    await pool.putconn(connection)
    return connection


async def terminate(connection: PipelineConnection, postgres: str) -> None:
    """End the connection at PostgreSQL's side."""
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as owner:
        await owner.execute("SELECT pg_terminate_backend(%s::integer, 5000)", [connection.info.backend_pid])


async def test_new_connections_leave_no_classes_behind(pool: Pool) -> None:
    """Psycopg keeps each class that is registered on a connection, for as long as the process runs."""
    async with acquire(pool):
        before = len(Dumper.__subclasses__()), len(_ArrayDumper.__subclasses__())
    for _ in range(3):
        await pool._replace(pool.conninfo)
        async with acquire(pool):
            pass
    assert (len(Dumper.__subclasses__()), len(_ArrayDumper.__subclasses__())) == before


@pytest.mark.plain_postgres
async def test_connections_act_as_the_application(pool: Pool) -> None:
    async with acquire(pool) as connection:
        row = await (await connection.execute("SELECT current_user")).fetchone()
    assert row == (APPLICATION_ROLE,)


async def test_a_waiting_caller_gets_the_returned_connection(one_connection: Pool) -> None:
    connection = await one_connection.getconn()
    waiting = [asyncio.create_task(one_connection.getconn()) for _ in range(3)]
    await until(lambda: one_connection.get_stats().get("requests_waiting") == 3)
    for task in waiting:
        await one_connection.putconn(connection)
        assert await task is connection
    await one_connection.putconn(connection)
    assert await one_connection.getconn() is connection


async def test_a_closed_connection_is_not_lent_again(one_connection: Pool) -> None:
    connection = await one_connection.getconn()
    await connection.close()
    await one_connection.putconn(connection)
    assert await one_connection.getconn() is not connection


async def test_a_closed_connection_is_replaced_without_a_word(
    one_connection: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(level="info", style="json")
    connection = await one_connection.getconn()
    await connection.close()  # as a cancelled caller does, and so every stop
    await one_connection.putconn(connection)
    await one_connection.putconn(await one_connection.getconn())
    assert capsys.readouterr().err == ""


async def test_a_lost_connection_fails_one_call(one_connection: Pool, postgres: str) -> None:
    lost = await get_and_return(one_connection)
    await terminate(lost, postgres)
    with pytest.raises(DatabaseUnavailable):
        async with acquire(one_connection) as connection:
            await connection.execute("SELECT 1")
    async with acquire(one_connection) as connection:
        await connection.execute("SELECT 1")
    assert await get_and_return(one_connection) is not lost


async def test_a_failed_call_has_the_other_lost_connections_replaced(pool: Pool, postgres: str) -> None:
    for lost in [await pool.getconn() for _ in range(pool.max_size)]:
        await terminate(lost, postgres)
        await pool.putconn(lost)
    with pytest.raises(DatabaseUnavailable):
        async with acquire(pool) as connection:
            await connection.execute("SELECT 1")
    for _ in range(pool.max_size):
        async with acquire(pool) as connection:
            await connection.execute("SELECT 1")


async def test_every_connection_is_lent_in_turn(pool: Pool) -> None:
    borrowed = set()

    async def are_all_lent() -> bool:
        borrowed.add(await get_and_return(pool))
        return len(borrowed) == pool.max_size

    await until(are_all_lent)


async def test_no_connection_stays_open_after_the_pool_is_closed(pool: Pool) -> None:
    first, *others = [await pool.getconn() for _ in range(pool.max_size)]
    for connection in others:
        await pool.putconn(connection)
    await pool.close()
    await pool.putconn(first)  # its borrower took longer
    assert all(connection.closed for connection in (first, *others))


async def test_a_worker_that_the_database_has_lost_costs_us_no_connection(one_connection: Pool) -> None:
    async with acquire(one_connection) as before:
        pass
    with pytest.raises(DatabaseUnavailable):
        async with acquire(one_connection) as connection:
            await connection.execute("DO $$ BEGIN RAISE connection_failure; END $$")
    async with acquire(one_connection) as after:
        assert after is before
    assert one_connection.is_available
