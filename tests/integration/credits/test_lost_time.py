"""Lost time: recorded after a restore, once, and only if the database was restored; repeats from then are refused."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from server.credits.accounts import RESTORED_SESSIONS, LostTime, RequestMemory, begin_lost_time
from server.credits.ledger import adjust_credits
from server.errors import RequestIdExpired
from server.ids import first_id
from server.postgres.pool import Pool, acquire, open_pool

START, END = datetime(2026, 11, 28, 12, tzinfo=UTC), datetime(2026, 11, 28, 13, tzinfo=UTC)
LOST = LostTime(START, START, END)
MILLISECOND = timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("request_id", "lacking"),
    [
        (first_id(START - MILLISECOND), False),
        (first_id(START), True),
        (first_id(END - MILLISECOND), True),
        (first_id(END), False),
        (uuid4(), False),
    ],
)
def test_only_time_ordered_ids_of_the_lost_time_are_lacking(request_id: UUID, *, lacking: bool) -> None:
    assert RequestMemory(lost=(LOST,)).lacks(request_id, now=END) is lacking


async def test_a_new_connection_knows_the_lost_time_and_a_request_from_then_is_refused(
    database_url: str,
) -> None:
    lost = await _begin(database_url, datetime.now(UTC) - timedelta(minutes=1))
    memory = RequestMemory()
    restarted = await open_pool(database_url, size=1, on_connect=memory.read)
    async with acquire(restarted):
        pass
    values: dict[str, Any] = {
        "credits": 5,
        "reason": "for a test",
        "created_by": "ann",
        "low_balance_threshold": 0,
        "memory": memory,
    }

    with pytest.raises(RequestIdExpired):
        await adjust_credits(
            restarted, "acme", request_id=first_id(lost.start_time + MILLISECOND), now=restarted.now(), **values
        )
    await adjust_credits(
        restarted, "acme", request_id=first_id(lost.end_time + MILLISECOND), now=restarted.now(), **values
    )
    await restarted.close()
    assert memory.lost == (lost,)
    assert lost.start_time < lost.restore_time - timedelta(minutes=4)
    assert await _begin(database_url, lost.restore_time) == lost


async def test_nothing_is_recorded_while_a_replica_is_connected(pool: Pool, database_url: str) -> None:
    async with acquire(pool):
        pass
    with pytest.raises(ValueError, match="stop every replica first"):
        await _begin(database_url, pool.now(), wait_seconds=0.2)
    assert _count(database_url) == 0


async def test_nothing_is_recorded_for_a_database_that_a_server_has_used_since(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO job_leases (job, holder, expire_time, last_success_time)"
            " VALUES ('drift', gen_random_uuid(), now(), now())"
        )
    with pytest.raises(ValueError, match="it was not restored to that time"):
        await _begin(database_url, datetime.now(UTC) - timedelta(minutes=1))
    assert _count(database_url) == 0


async def _begin(url: str, restore_time: datetime, **options: float) -> LostTime:
    own = await open_pool(make_conninfo(url, application_name=RESTORED_SESSIONS), size=1)
    try:
        return await begin_lost_time(own, restore_time, **options)
    finally:
        await own.close()


def _count(url: str) -> int:
    with psycopg.connect(url) as connection:
        ((count,),) = connection.execute("SELECT count(*) FROM lost_times").fetchall()
    return int(count)
