"""The database's time: measured before a connection is used, on new connections, and by a periodic job."""

from datetime import timedelta

import pytest

from server.cli import doctor
from server.clock import DatabaseClock, utc_now
from server.jobs import JobRunner, PeriodicJob
from server.postgres.pool import acquire, measure_clock, open_pool, read_time
from tests.database_clock import steppable_clock
from tests.waiting import until

HOUR = timedelta(hours=1)


async def test_a_pool_knows_the_databases_time_before_its_first_connection_is_used(database_url: str) -> None:
    clock = DatabaseClock(machine=lambda: utc_now() + HOUR)
    pool = await open_pool(database_url, size=1, clock=clock)
    async with acquire(pool) as connection:
        assert abs(clock.skew - HOUR) <= clock.error + timedelta(milliseconds=1)
        assert abs(await read_time(connection) - clock()) < timedelta(minutes=1)
    await pool.close()


async def test_a_new_connection_shows_another_hosts_clock(database_url: str) -> None:
    with steppable_clock(database_url) as (url, set_ahead):
        pool = await open_pool(url, size=1)
        async with acquire(pool):
            assert abs(pool.clock.skew) < HOUR / 2
        set_ahead(3600)
        connection = await pool.getconn()
        await connection.close()
        await pool.putconn(connection)
        async with acquire(pool):
            assert abs(pool.clock.skew + HOUR) < HOUR / 2
        await pool.close()


async def test_the_time_is_measured_again_while_the_server_runs(database_url: str) -> None:
    with steppable_clock(database_url) as (url, set_ahead):
        pool = await open_pool(url, size=1)
        runner = JobRunner(pool, [PeriodicJob("clock", 0.01, lambda _: measure_clock(pool))])
        set_ahead(-3600)
        await until(lambda: abs(pool.clock.skew - HOUR) < HOUR / 2)
        await runner.stop()
        await pool.close()


async def test_doctor_compares_the_clocks(database_url: str) -> None:
    with steppable_clock(database_url) as (url, set_ahead):
        assert abs(await doctor._clock_skew(url)) < 2
        set_ahead(61)
        with pytest.raises(ValueError, match=r"differ by -6[01]\.\d s$"):
            await doctor._clock_skew(url)
