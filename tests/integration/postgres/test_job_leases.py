"""Jobs of maintenance: one replica at a time runs each, when it is due, and a crashed one is replaced."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from server.errors import PaymentProviderUnavailable
from server.jobs import JobRunner, PeriodicJob, maintain
from server.postgres.pool import Pool, acquire
from tests.waiting import until

DAY = 24 * 60 * 60


@dataclass(slots=True)
class Daily:
    """A daily job that waits for `end`."""

    runs: int = 0
    end: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def job(self) -> PeriodicJob:
        return PeriodicJob("daily", DAY, self._run, is_maintenance=True)

    async def _run(self, _now: datetime) -> int:
        self.runs += 1
        await self.end.wait()
        return 1


def ended() -> Daily:
    daily = Daily()
    daily.end.set()
    return daily


async def query(pool: Pool, text: str, *parameters: object) -> list[tuple[Any, ...]]:
    async with acquire(pool) as connection:
        cursor = await connection.execute(text.encode(), parameters)
        return await cursor.fetchall() if cursor.description else []


async def pass_by(pool: Pool, hours: float) -> None:
    """Let time pass for the leases and the last success."""
    ago = timedelta(hours=hours)
    text = "UPDATE job_leases SET expire_time = expire_time - %s, last_success_time = last_success_time - %s"
    await query(pool, text, ago, ago)


async def test_one_replica_at_a_time_runs_a_job(pool: Pool) -> None:
    first, others = Daily(), ended()
    running = asyncio.create_task(maintain(pool, first.job))
    await until(lambda: first.runs == 1)
    found = [await maintain(pool, others.job) for _ in range(2)]
    first.end.set()
    last_success = await running

    assert (first.runs, others.runs, found) == (1, 0, [0.0, 0.0])
    assert await maintain(pool, others.job) == last_success > 0


async def test_a_daily_job_runs_a_day_after_its_last_success_however_often_replicas_restart(pool: Pool) -> None:
    runs = []
    for hours in (0, 23, 0.9, 0.2, 23, 1.1):
        await pass_by(pool, hours)
        daily = ended()
        await maintain(pool, daily.job)
        runs.append(daily.runs)

    assert runs == [1, 0, 0, 1, 0, 1]


async def test_a_crashed_holder_is_replaced_once_its_lease_has_run_out(pool: Pool) -> None:
    crashed, other = Daily(), ended()
    running = asyncio.create_task(maintain(pool, crashed.job))
    await until(lambda: crashed.runs == 1)
    running.cancel()
    await asyncio.wait([running])
    await maintain(pool, other.job)
    before = other.runs
    await pass_by(pool, 0.1)
    await maintain(pool, other.job)

    assert (before, other.runs) == (0, 1)


async def test_a_failed_run_is_no_success(pool: Pool) -> None:
    async def fail(_now: datetime) -> int:
        raise PaymentProviderUnavailable(retry_after_seconds=1.0)

    with pytest.raises(PaymentProviderUnavailable):
        await maintain(pool, PeriodicJob("daily", DAY, fail, is_maintenance=True))
    await pass_by(pool, 0.1)
    other = ended()
    await maintain(pool, other.job)

    assert other.runs == 1


async def test_the_lease_of_a_long_run_is_renewed(pool: Pool) -> None:
    async def expire_time() -> datetime:
        ((time,),) = await query(pool, "SELECT expire_time FROM job_leases")
        return time  # type: ignore[no-any-return]

    daily = Daily()
    running = asyncio.create_task(maintain(pool, daily.job, lease=timedelta(seconds=8)))
    await until(lambda: daily.runs == 1)
    first = await expire_time()

    async def is_renewed() -> bool:
        return await expire_time() > first

    await until(is_renewed)
    daily.end.set()
    assert await running > 0


async def test_a_run_ends_with_its_lease_when_another_replica_has_taken_it(pool: Pool) -> None:
    daily = Daily()
    running = asyncio.create_task(maintain(pool, daily.job, lease=timedelta(seconds=1)))
    await until(lambda: daily.runs == 1)
    await query(pool, "UPDATE job_leases SET holder = gen_random_uuid()")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(running), 60)
    assert running.done()


async def test_each_replica_publishes_the_last_success_of_any(pool: Pool) -> None:
    runs: list[datetime] = []

    async def run(now: datetime) -> int:
        runs.append(now)
        return 0

    job = PeriodicJob("published", 0.01, run, is_maintenance=True)
    await maintain(pool, job)
    await query(pool, "UPDATE job_leases SET last_success_time = now() + interval '1 day'")
    runner = JobRunner(pool, [job])
    ((expected,),) = await query(pool, "SELECT extract(epoch FROM last_success_time)::double precision FROM job_leases")

    def published() -> float | None:
        return REGISTRY.get_sample_value("pulsa_job_last_success_timestamp_seconds", {"job": "published"})

    await until(lambda: published() == expected)
    await runner.stop()
    assert len(runs) == 1
