"""Usage: each send is counted once, on its day and channel."""

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest

from server.otps.recipients import RawDestination
from server.otps.usage import DailyUsage, read_usage
from server.postgres.pool import Pool, acquire, transaction
from server.providers.provider import Channel, OutcomeKind
from tests.integration.otps.backends import wait_for_blocked_backend
from tests.integration.otps.replica import ManualClock, Replica, fund

FRIDAY, SATURDAY = date(2026, 11, 20), date(2026, 11, 21)
EMAIL, SMS = Channel.EMAIL, Channel.SMS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """Shortly before the end of Friday, for ids too."""
    clock = ManualClock(datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC))
    monkeypatch.setattr("time.time_ns", lambda: int(clock.now.timestamp() * 1e9))
    return clock


async def usage(pool: Pool, start: date, end: date, organization_id: str = "acme") -> list[DailyUsage]:
    async with acquire(pool) as connection:
        return await read_usage(connection, organization_id, start=start, end=end)


async def test_sends_are_counted_by_day_and_channel_with_refunds_deducted(pool: Pool, clock: ManualClock) -> None:
    replica = Replica(pool, clock=clock)
    await fund(pool, 100)
    first, failed = await replica.send(), await replica.send()
    await replica.record_outcome(failed, OutcomeKind.REJECTED_DESTINATION)
    clock.advance(seconds=1)
    await replica.resend(first.record.otp, destination=RawDestination(SMS, "+6281234567890", "destination"))
    await replica.verify(first.record.otp)
    await replica.send("+6281234567890", channel=SMS)
    assert await usage(pool, FRIDAY, SATURDAY) == [
        DailyUsage(FRIDAY, EMAIL, sends=2, credits=1, otps=2, verified_otps=1),
        DailyUsage(SATURDAY, SMS, sends=2, credits=6, otps=1, verified_otps=0),
    ]
    assert await usage(pool, FRIDAY, SATURDAY, "other") == []
    assert await usage(pool, SATURDAY + timedelta(days=1), SATURDAY + timedelta(days=9)) == []


async def test_a_send_that_is_accepted_after_midnight_counts_for_the_new_day_only(
    pool: Pool, clock: ManualClock
) -> None:
    replica = Replica(pool, clock=clock)
    await fund(pool, 100)
    async with transaction(pool) as holder:
        await holder.execute("SELECT FROM accounts WHERE organization_id = 'acme' FOR UPDATE")
        sending = asyncio.create_task(replica.send())
        await wait_for_blocked_backend(pool)
        clock.advance(seconds=1)
    await sending
    assert await usage(pool, FRIDAY, FRIDAY) == []
    assert await usage(pool, SATURDAY, SATURDAY) == [
        DailyUsage(SATURDAY, EMAIL, sends=1, credits=1, otps=1, verified_otps=0)
    ]


@pytest.mark.parametrize("day", [date(1, 1, 1), date(1969, 12, 31), date(9999, 12, 31)])
async def test_days_outside_the_range_of_id_timestamps_have_no_usage(pool: Pool, day: date) -> None:
    await fund(pool, 100)
    await Replica(pool).send()

    assert await usage(pool, day, day) == []
