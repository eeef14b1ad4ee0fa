"""Outages of the database: calls end within a bound and with DatabaseUnavailable, and the pool finds it again."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

from server.errors import AccountBusy, DatabaseUnavailable
from server.postgres.conninfo import Timeouts, with_timeouts
from server.postgres.migrate import migrate
from server.postgres.pool import (
    BoundedConnection,
    Pool,
    acquire,
    open_pool,
    pipelined_transaction,
    retry_transient,
    transaction,
)
from tests.fault_proxy import Fault, FaultProxy, proxy_to
from tests.outages import database_away, end_sessions, no_new_sessions
from tests.waiting import until

TIMEOUTS = Timeouts(connection=0.5, transaction=0.5, lock=0.2, idle_in_transaction=0.3)


@asynccontextmanager
async def pool_of(url: str, *, size: int = 3) -> AsyncIterator[Pool]:
    pool = await open_pool(url, size=size, timeouts=TIMEOUTS)
    try:
        yield pool
    finally:
        async with asyncio.timeout(10):
            await pool.close()


@pytest.fixture
async def proxied(database_url: str) -> AsyncIterator[tuple[FaultProxy, Pool]]:
    async with proxy_to(database_url) as (proxy, url), pool_of(url) as pool:
        yield proxy, pool


async def one(pool: Pool) -> int:
    async with pipelined_transaction(pool) as pipeline:
        rows = await pipeline.execute("SELECT 1", {})
    return int((await rows.fetchall())[0][0])


async def one_outside_pipeline(pool: Pool) -> int:
    async with acquire(pool) as connection:
        row = await (await connection.execute("SELECT 1")).fetchone()
    return int(row[0]) if row else 0


async def test_a_start_opens_each_connection_once(proxied: tuple[FaultProxy, Pool]) -> None:
    proxy, pool = proxied
    assert await one(pool) == 1
    await until(lambda: pool.get_stats()["pool_available"] == pool.max_size)
    assert len(proxy.accepted) == pool.max_size + 1  # the probe's


async def works_again(pool: Pool) -> None:
    """Wait until a call succeeds."""

    async def works() -> bool:
        try:
            return await one(pool) == 1
        except DatabaseUnavailable:
            return False

    await until(works)


@pytest.mark.parametrize("call", [one, one_outside_pipeline])
@pytest.mark.parametrize("fault", [Fault.SILENCE, Fault.NO_ANSWER, Fault.REFUSE])
async def test_a_fault_of_the_path_ends_calls_and_later_ones_at_once_until_it_ends(
    proxied: tuple[FaultProxy, Pool], fault: Fault, call: Callable[[Pool], Awaitable[int]]
) -> None:
    proxy, pool = proxied
    assert await call(pool) == 1
    with capture_logs() as lines:
        proxy.set(fault)
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable) as caught:
                await call(pool)
            assert caught.value.retry_after_seconds == 1
        await until(lambda: not pool.is_available)
        requests = pool.get_stats().get("requests_num", 0)
        with pytest.raises(DatabaseUnavailable):
            await call(pool)
        assert pool.get_stats().get("requests_num", 0) == requests  # it did not ask for a connection

        proxy.set(Fault.NONE)
        await works_again(pool)
    assert pool.is_available
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("the database was lost", "error"),
        ("the database was found again", "warning"),
    ]


async def test_a_database_that_refuses_connections_is_found_again(database_url: str) -> None:
    async with pool_of(database_url) as pool:
        assert await one(pool) == 1
        async with database_away(database_url):
            with pytest.raises(DatabaseUnavailable):
                await one(pool)
            await until(lambda: not pool.is_available)
        await works_again(pool)


async def test_after_a_restart_a_repeated_call_succeeds(database_url: str) -> None:
    async with pool_of(database_url) as pool:
        for _ in range(3):
            assert await one(pool) == 1
            await end_sessions(database_url)
            assert await retry_transient(lambda: one(pool)) == 1


async def test_a_database_that_only_refuses_new_connections_is_not_lost(database_url: str) -> None:
    async with pool_of(database_url) as pool:
        await asyncio.gather(*(slow_one(pool) for _ in range(pool.max_size)))  # every connection is open
        async with no_new_sessions(database_url):
            with capture_logs() as lines:
                async with asyncio.timeout(30):
                    await asyncio.gather(recovered(pool), used_until_recovered(pool))
            assert pool.is_available
            assert [line for line in lines if line["event"] == "the database was lost"] == []


async def test_a_server_that_starts_without_a_database_answers_and_finds_it(database_url: str) -> None:
    async with database_away(database_url), pool_of(database_url) as pool:
        with pytest.raises(DatabaseUnavailable):
            await one(pool)
        await until(lambda: not pool.is_available)


async def test_a_primary_that_becomes_read_only_is_an_outage_and_ends_without_a_restart(database_url: str) -> None:
    name = conninfo_to_dict(database_url)["dbname"]
    async with (
        pool_of(database_url) as pool,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as owner,
    ):
        await owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        await end_other_sessions(owner)
        await until(lambda: write_is_refused(pool))

        async def is_lost() -> bool:
            with suppress(DatabaseUnavailable):
                await one(pool)  # reads succeed until the outage is declared
            return not pool.is_available

        await until(is_lost)
        await owner.execute("SET default_transaction_read_only = off")
        await owner.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
        await works_again(pool)
        assert not await write_is_refused(pool)


async def test_connections_go_to_the_host_that_takes_writes_and_follow_it(database_url: str) -> None:
    async with proxy_to(database_url) as (first, first_url), proxy_to(database_url) as (second, second_url):
        ports = [str(conninfo_to_dict(url)["port"]) for url in (first_url, second_url)]
        url = make_conninfo(database_url, host="127.0.0.1,127.0.0.1", port=",".join(ports))
        second.set(Fault.REFUSE)
        async with pool_of(url) as pool:
            assert await one(pool) == 1
            for lost, found in ((first, second), (second, first)):
                lost.set(Fault.SILENCE)
                found.set(Fault.NONE)
                with pytest.raises(DatabaseUnavailable):
                    await one(pool)
                await works_again(pool)


async def test_a_start_reaches_the_second_host_behind_a_silent_one(database_url: str) -> None:
    async with proxy_to(database_url) as (silent, silent_url), proxy_to(database_url) as (_, url):
        silent.set(Fault.SILENCE)
        ports = [str(conninfo_to_dict(one)["port"]) for one in (silent_url, url)]
        hosts = make_conninfo(database_url, host="127.0.0.1,127.0.0.1", port=",".join(ports))
        assert await asyncio.to_thread(migrate, with_timeouts(hosts, TIMEOUTS)) == []
        async with pool_of(hosts) as pool:
            assert await one(pool) == 1


async def test_the_connections_of_a_start_are_kept_when_the_database_answers(database_url: str) -> None:
    async with pool_of(database_url) as pool:
        opened = pool._pool
        assert await one(pool) == 1  # waits for the first look
        assert pool._pool is opened


async def test_a_read_only_pool_reads_and_cannot_write(database_url: str) -> None:
    pool = await open_pool(database_url, size=1, timeouts=TIMEOUTS, read_only=True)
    try:
        assert await one(pool) == 1
        with pytest.raises(DatabaseUnavailable) as refused:
            async with acquire(pool) as connection:
                await connection.execute("DELETE FROM notices")
        assert isinstance(refused.value.__cause__, psycopg.errors.ReadOnlySqlTransaction)
    finally:
        await pool.close()


async def test_a_transaction_that_idles_is_ended_and_its_caller_hears_of_the_database(database_url: str) -> None:
    async with pool_of(database_url) as pool:
        with pytest.raises(DatabaseUnavailable):  # noqa: PT012 - the statements of one transaction
            async with transaction(pool, seconds=10) as connection:
                await connection.execute("SELECT 1")
                await asyncio.sleep(3 * TIMEOUTS.idle_in_transaction)
                await connection.execute("SELECT 1")
        await works_again(pool)


async def test_a_locked_row_ends_the_wait_with_account_busy(database_url: str) -> None:
    insert = (
        b"INSERT INTO guess_budgets (organization_id, destination_digest, wrong_guess_times, last_guess_time)"
        b" VALUES ('acme', '', '{}', now())"
    )
    async with pool_of(database_url) as pool, await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute(insert)
        with pytest.raises(AccountBusy):
            async with transaction(pool) as connection:
                await connection.execute(insert)
        assert pool.is_available


async def test_a_connection_that_is_closed_for_its_silence_does_not_keep_the_pool_open(database_url: str) -> None:
    async with proxy_to(database_url) as (proxy, url):
        async with pool_of(url) as pool:
            assert await one(pool) == 1
            proxy.set(Fault.NO_ANSWER)
            with pytest.raises(DatabaseUnavailable):
                await one(pool)
        # pool_of has closed the pool within its bound, though the path is still silent
        assert proxy.accepted


async def end_other_sessions(owner: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
    await owner.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def write_is_refused(pool: Pool) -> bool:
    try:
        async with transaction(pool) as connection:
            await connection.execute("DELETE FROM guess_budgets WHERE organization_id = 'nobody'")
    except DatabaseUnavailable:
        return True
    return False


async def slow_one(pool: Pool) -> None:
    async with acquire(pool) as connection:
        await connection.execute("SELECT pg_sleep(0.2)")


async def recovered(pool: Pool) -> None:
    await pool.recover(psycopg.OperationalError("lost"))
    await until(lambda: pool._probing is None)


async def used_until_recovered(pool: Pool) -> None:
    await asyncio.sleep(0)
    while pool._probing is not None:
        assert await retry_transient(lambda: one(pool)) == 1
        await asyncio.sleep(0.01)


async def end_idle(_pool: Pool, url: str) -> None:
    await end_sessions(url)


async def end_in_flight(pool: Pool, url: str) -> None:
    async with pipelined_transaction(pool) as pipeline:
        await pipeline.execute("SELECT 1", {})
        await end_sessions(url)


@pytest.mark.parametrize("end", [end_idle, end_in_flight])
async def test_a_lost_connection_leaves_nothing_in_memory(
    database_url: str, end: Callable[[Pool, str], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """Else it stays until the garbage collector looks at old objects: for hours, in a server without many calls."""
    caplog.set_level(logging.CRITICAL, "psycopg.pool")  # pytest keeps what is logged, and so the connection
    async with pool_of(database_url, size=1) as pool:
        assert await one(pool) == 1
        async with acquire(pool) as connection:
            lost = weakref.ref(connection)
        del connection
        gc.disable()
        try:
            with suppress(DatabaseUnavailable):
                await end(pool, database_url)
            await works_again(pool)
            await until(lambda: lost() is None)
        finally:
            gc.enable()


async def connect_in_vain(url: str) -> None:
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        await BoundedConnection.connect(url, connect_timeout=2)


async def open_and_close_a_pool(url: str) -> None:
    pool = await open_pool(url, size=1, timeouts=TIMEOUTS)
    await asyncio.sleep(0.1)  # so that its probe connects
    await pool.close()


@pytest.mark.parametrize("give_up", [connect_in_vain, open_and_close_a_pool])
async def test_a_connection_that_is_given_up_while_it_opens_is_closed_at_once(
    give_up: Callable[[str], Awaitable[None]],
) -> None:
    connected = closed = 0

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected, closed
        connected += 1
        with suppress(ConnectionError):
            await reader.read()
        closed += 1
        writer.close()

    gc.disable()  # which would close it, at some time
    try:
        async with await asyncio.start_server(be_silent, "127.0.0.1", 0) as server:
            await give_up(f"postgresql://anyone@127.0.0.1:{server.sockets[0].getsockname()[1]}/any")
            assert connected
            await until(lambda: closed == connected)
    finally:
        gc.enable()


async def test_a_long_statement_that_outlives_an_outage_does_not_end_the_search_for_the_database(
    database_url: str,
) -> None:
    """Its connection was there before, and says nothing of new ones."""
    async with pool_of(database_url) as pool, AsyncExitStack() as job:
        connection = await job.enter_async_context(acquire(pool, seconds=pool.timeouts.job))
        async with no_new_sessions(database_url):
            await end_sessions(database_url, but=connection.info.backend_pid)
            with suppress(DatabaseUnavailable):
                async with acquire(pool) as lost:
                    await lost.execute("SELECT 1")
            await until(lambda: not pool.is_available)
            await job.aclose()
            await asyncio.sleep(0.6)  # two looks for the database
            assert not pool.is_available
        await until(lambda: pool.is_available)
