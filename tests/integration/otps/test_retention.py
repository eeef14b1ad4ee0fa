"""Retention: destinations are erased first, then all but the ledger and the usage is removed."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from server.credits.audit import audit_snapshot
from server.credits.notices import remove_notices
from server.credits.stripe.inbox import remove_stripe_events
from server.errors import AccountBusy, OtpNotFound, RequestIdExpired, RequestIdReused, WrongCode
from server.ids import new_id
from server.jobs import RetentionPeriods, retention_jobs
from server.otps.otp import OtpStatus
from server.otps.retention import (
    SQL,
    create_partitions,
    erase_destinations,
    remove_guess_budgets,
    remove_otps,
    remove_unverified,
)
from server.otps.send import Accepted
from server.otps.usage import DailyUsage, read_usage
from server.postgres.pool import Pool, acquire, open_pool, transaction
from server.providers.provider import Channel, OutcomeKind
from tests.databases import Databases
from tests.integration.otps.replica import ManualClock, Replica, count_rows, fund, ledger, stored, wrong

PERIODS = RetentionPeriods(
    destinations=timedelta(days=30),
    records=timedelta(days=90),
    requests=timedelta(days=97),
    guess_window=timedelta(days=1),
    unverified_window=timedelta(days=2),
)


@pytest.fixture
async def database_url(databases: Databases) -> AsyncIterator[str]:
    """A database whose sends may lack their deliveries at the end; every other rule of the audit must hold."""
    with databases.new() as url:
        yield url
        pool = await open_pool(url, size=1)
        async with transaction(pool) as connection:
            report = await audit_snapshot(connection, None, later(days=9), verify_time=later())
        await pool.close()
    assert report.findings == ()


async def apply_retention(pool: Pool, *, now: datetime) -> int:
    """Run each job of retention once; returns the number of rows."""
    return sum([await job.run(now) for job in retention_jobs(pool, PERIODS)])


async def total(steps: AsyncIterator[int]) -> int:
    return sum([count async for count in steps])


def later(*, days: float = 0) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


async def accepted_sends(replica: Replica, number: int) -> list[Accepted]:
    await fund(replica.pool, number)
    sends = [await replica.send() for _ in range(number)]
    for send in sends:
        await replica.record_outcome(send, OutcomeKind.ACCEPTED)
    return sends


async def test_a_destination_is_erased_after_its_period_and_nothing_else_is(replica: Replica) -> None:
    pool, (send,) = replica.pool, await accepted_sends(replica, 1)
    counts = [await apply_retention(pool, now=later(days=days)) for days in (29.9, 30.1, 30.1, 80)]

    (delivery,) = (await stored(pool, send.record.otp)).deliveries
    assert counts == [0, 1, 0, 0]
    assert (delivery.destination_sealed, delivery.masked_destination) == (None, send.delivery.masked_destination)
    with pytest.raises(OtpNotFound):
        await replica.resend(send.record.otp)


async def test_erasing_continues_where_the_last_step_ended(replica: Replica) -> None:
    await accepted_sends(replica, 5)
    steps = [count async for count in erase_destinations(replica.pool, before=later(), limit=2)]
    await accepted_sends(replica, 1)
    steps += [count async for count in erase_destinations(replica.pool, before=later(), limit=2)]

    async with acquire(replica.pool) as connection:
        left = await (
            await connection.execute("SELECT 1 FROM deliveries WHERE destination_sealed IS NOT NULL")
        ).fetchall()
    assert steps == [2, 2, 1, 1]
    assert left == []


def end_of_week() -> datetime:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today + timedelta(days=7 - today.weekday())


async def test_a_week_is_removed_after_its_period_and_its_ledger_entries_stay(replica: Replica) -> None:
    pool, sends = replica.pool, await accepted_sends(replica, 3)
    await fund(pool, 1)
    again = await replica.resend(sends[0].record.otp)
    await replica.record_outcome(again, OutcomeKind.REJECTED_DESTINATION)
    before = await ledger(pool)

    (job,) = [job for job in retention_jobs(pool, PERIODS) if job.name == "retention of otps"]
    due = end_of_week() + PERIODS.records
    removed = [await job.run(due + timedelta(seconds=seconds)) for seconds in (-1, 0, 0)]

    assert removed == [0, 2, 0]
    assert [await count_rows(pool, table) for table in ("otps", "deliveries", "outbox")] == [0, 0, 0]
    assert await ledger(pool) == before


async def test_a_request_outlives_its_otp_and_is_a_new_one_only_after_its_life(replica: Replica) -> None:
    pool, request_id, to = replica.pool, uuid4(), "bob@example.com"
    await fund(pool, 10)
    first = await replica.send(to, request_id=request_id)
    resent = await replica.resend(first.record.otp, request_id=uuid4())
    for send in (first, resent):
        await replica.record_outcome(send, OutcomeKind.ACCEPTED)
    await apply_retention(pool, now=later(days=97.5))
    assert (await count_rows(pool, "otps"), await count_rows(pool, "requests")) == (0, 3)
    with pytest.raises(RequestIdExpired):
        await replica.send(to, request_id=request_id)
    with pytest.raises(RequestIdReused):
        await replica.send(to, request_id=request_id, purpose="payment")
    await apply_retention(pool, now=later(days=98.1))

    assert await count_rows(pool, "requests") == 0
    assert not (await replica.send(to, request_id=request_id)).replayed


async def test_a_week_with_an_open_delivery_is_not_removed(replica: Replica) -> None:
    pool = replica.pool
    await fund(pool, 1)
    send = await replica.send()
    with pytest.raises(psycopg.errors.RaiseException, match="not settled"):
        await total(remove_otps(pool, before=end_of_week(), limit=1))
    assert await count_rows(pool, "otps") == 1
    await replica.record_outcome(send, OutcomeKind.ACCEPTED)

    assert await total(remove_otps(pool, before=end_of_week(), limit=1)) == 2


@pytest.mark.parametrize("monday", [end_of_week(), datetime(2026, 9, 28, tzinfo=UTC)], ids=["weeks", "no partition"])
async def test_usage_stays_the_same_when_its_otps_are_removed(replica: Replica, monday: datetime) -> None:
    """Also that of OTPs whose week ends between their sends."""
    pool, clock = replica.pool, ManualClock(monday - timedelta(seconds=1))
    replica = Replica(pool, clock=clock)
    await fund(pool, 100)
    sends = [await replica.send() for _ in range(4)]
    await replica.verify(sends[0].record.otp)
    clock.advance(seconds=2)
    sends += [await replica.resend(sends[1].record.otp), await replica.send()]
    await replica.verify(sends[1].record.otp)
    for send, kind in zip(sends, [OutcomeKind.ACCEPTED, OutcomeKind.REJECTED_DESTINATION] * 3, strict=True):
        await replica.record_outcome(send, kind)

    async def usage() -> list[DailyUsage]:
        async with acquire(pool) as connection:
            return await read_usage(
                connection, "acme", start=monday.date() - timedelta(days=9), end=monday.date() + timedelta(days=9)
            )

    before, left = await usage(), []
    for end in (monday, monday + timedelta(days=7)):
        await total(remove_otps(pool, before=end, limit=1))
        assert await usage() == before
        left.append((await count_rows(pool, "otps"), await count_rows(pool, "deliveries")))
    sunday = monday.date() - timedelta(days=1)
    assert before == [
        DailyUsage(sunday, Channel.EMAIL, sends=4, credits=2, otps=4, verified_otps=2),
        DailyUsage(monday.date(), Channel.EMAIL, sends=2, credits=1, otps=1, verified_otps=0),
    ]
    assert left == [(1, 1), (0, 0)]


async def test_a_partition_that_is_late_takes_its_rows(replica: Replica, database_url: str) -> None:
    """The partitions were not made for weeks: sends go on without."""
    week = end_of_week() - timedelta(days=7)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as owner:
        for table in ("otps", "deliveries"):
            await owner.execute(f"DROP TABLE {table}_{week:%Y%m%d}".encode())
        (send,) = await accepted_sends(replica, 1)
        created = [await create_partitions(replica.pool) for _ in range(2)]
        assert created == [2, 0]
        cursor = await owner.execute(
            "SELECT (SELECT count(*) FROM otps_default) + (SELECT count(*) FROM deliveries_default)"
        )
        assert await cursor.fetchone() == (0,)
    assert (await replica.verify(send.record.otp)).status is OtpStatus.VERIFIED


async def test_a_dump_keeps_retention_but_no_sends(replica: Replica, other_pool: Pool) -> None:
    await accepted_sends(replica, 1)
    async with transaction(other_pool) as dump:
        await dump.execute("SELECT FROM deliveries")
        with pytest.raises(AccountBusy):
            await total(remove_otps(replica.pool, before=end_of_week(), limit=1))
        await accepted_sends(replica, 1)


async def test_locked_rows_of_one_time_do_not_keep_the_younger_ones(pool: Pool, other_pool: Pool) -> None:
    insert = "INSERT INTO guess_budgets (organization_id, destination_digest, last_guess_time) VALUES ('acme', %s, %s)"
    async with acquire(pool) as connection:
        old = later(days=-3)
        await connection.cursor().executemany(insert, [(bytes([number]), old) for number in range(3)])
        await connection.execute(insert, [b"younger", later(days=-2)])
    async with transaction(other_pool) as holder:
        await holder.execute(
            "SELECT 1 FROM guess_budgets WHERE organization_id = 'acme' AND length(destination_digest) = 1 FOR UPDATE"
        )
        meanwhile = [count async for count in remove_guess_budgets(pool, before=later(), limit=3)]

    assert (meanwhile, await total(remove_guess_budgets(pool, before=later(), limit=3))) == ([0, 0, 1], 3)


async def test_wrong_guesses_are_removed_once_they_no_longer_count(replica: Replica) -> None:
    (send,) = await accepted_sends(replica, 1)
    otp = send.record.otp
    with pytest.raises(WrongCode):
        await replica.verify(otp, wrong(otp))
    counting = await apply_retention(replica.pool, now=later(days=1.9))
    over = await apply_retention(replica.pool, now=later(days=2.1))

    assert (counting, over, await count_rows(replica.pool, "guess_budgets")) == (0, 1, 0)


async def test_a_locked_guess_budget_is_left_for_the_next_run(replica: Replica, other_pool: Pool) -> None:
    (send,) = await accepted_sends(replica, 1)
    otp = send.record.otp
    with pytest.raises(WrongCode):
        await replica.verify(otp, wrong(otp))
    async with transaction(other_pool) as guess:
        await guess.execute("SELECT 1 FROM guess_budgets WHERE organization_id = 'acme' FOR NO KEY UPDATE")
        meanwhile = await total(remove_guess_budgets(replica.pool, before=later(), limit=10))

    assert (meanwhile, await total(remove_guess_budgets(replica.pool, before=later(), limit=10))) == (0, 1)


async def test_a_run_continues_until_nothing_is_left(pool: Pool) -> None:
    async with acquire(pool) as connection:
        await connection.execute(
            "INSERT INTO guess_budgets (organization_id, destination_digest, last_guess_time)"
            " SELECT 'acme', int4send(number), %s FROM generate_series(1, 12345) AS number",
            [later(days=-3)],
        )

    assert await apply_retention(pool, now=later()) == 12_345


async def test_unverified_credits_are_removed_once_their_window_is_over(replica: Replica, other_pool: Pool) -> None:
    pool = replica.pool
    await fund(pool, 6)
    for number in ("+6281234567890", "+6581234567"):
        await replica.record_outcome(await replica.send(number, channel=Channel.SMS), OutcomeKind.ACCEPTED)
    counting = await apply_retention(pool, now=later(days=2.9))
    async with transaction(other_pool) as send:
        await send.execute(
            "SELECT 1 FROM unverified_credits WHERE organization_id = 'acme' AND area = 'ID' FOR NO KEY UPDATE"
        )
        meanwhile = await total(remove_unverified(pool, before=later(), limit=1))
    over = await apply_retention(pool, now=later(days=3.1))

    assert (counting, meanwhile, over, await count_rows(pool, "unverified_credits")) == (0, 1, 1, 0)


async def test_pending_notices_are_kept_and_others_are_removed(pool: Pool) -> None:
    async with acquire(pool) as connection:
        for status in ("PENDING", "SENT", "FAILED"):
            await connection.execute(
                "INSERT INTO notices (organization_id, notice_id, kind, reference_id, email, details, status,"
                " next_attempt_time, create_time) VALUES ('acme', %s, 'BALANCE_LOW', %s, '', %s, %s, %s, %s)",
                [new_id(), status, Jsonb({}), status, later(), later()],
            )
    removed = [await total(remove_notices(pool, before=later(days=days), limit=1)) for days in (-1, 1, 1)]

    assert (removed, await count_rows(pool, "notices")) == ([0, 2, 0], 1)


async def test_received_and_dead_events_are_kept_and_others_are_removed(pool: Pool) -> None:
    async with acquire(pool) as connection:
        for status in ("RECEIVED", "DONE", "REJECTED", "DEAD"):
            await connection.execute(
                "INSERT INTO stripe_events (event_id, type, payload, status, next_attempt_time, create_time)"
                " VALUES (%s, 'invoice.paid', '{}', %s, %s, %s)",
                [f"evt_{status}", status, later(), later()],
            )
    removed = [await total(remove_stripe_events(pool, before=later(days=days), limit=1)) for days in (-1, 1, 1)]

    assert (removed, await count_rows(pool, "stripe_events")) == ([0, 2, 0], 2)


@pytest.mark.plain_postgres  # reads the plan, which is that of each shard on Citus, under a sort of what they found
@pytest.mark.parametrize(
    "name",
    [name for name, _ in SQL if name not in ("read_progress", "advance_progress", "remove_week", "create_partitions")],
)
async def test_old_rows_are_found_by_an_index_without_a_sort(pool: Pool, name: str) -> None:
    otp_id = new_id()
    values = {
        "organization_id": "acme",
        "ids": {
            "remove_guess_budgets": [b"1"],
            "remove_suppressions": [b"1"],
            "remove_unverified": ["ID"],
        }.get(name, [otp_id]),
        "organization_ids": ["acme"],
        "otp_ids": [new_id()],
        "delivery_ids": [new_id()],
        "digests": [b"1"],
        "after": later(days=-9),
        "before": later(),
        "last_otp_id": otp_id,
        "first_otp_id": otp_id,
        "end_id": UUID(int=otp_id.int + 1),
        "limit": 10,
    }
    async with acquire(pool) as connection:
        plan = "\n".join(
            row[0] for row in await (await connection.execute(f"EXPLAIN {dict(SQL)[name]}", values)).fetchall()
        )

    assert "Index" in plan
    assert "Seq Scan" not in plan
    assert "Sort" not in plan
