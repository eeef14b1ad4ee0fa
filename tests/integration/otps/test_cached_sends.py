"""Lone sends on a cached account: one round trip, and the same result as the normal path."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest

from server.clock import utc_now
from server.credits.accounts import resume, suspend
from server.credits.alerts import update_alerts
from server.errors import (
    DeadlineExceeded,
    InsufficientCredits,
    OrganizationSuspended,
    RequestIdReused,
    ResendTooSoon,
    TooManySends,
)
from server.otps.admission import SendLimits
from server.postgres.pool import Pool, acquire, transaction
from server.providers.provider import Channel
from tests.integration.otps.backends import wait_for_blocked_backend
from tests.integration.otps.replica import ManualClock, Replica, count_rows, fund, ledger, spent, stored

pytestmark = pytest.mark.plain_postgres  # on Citus every send takes the normal path
LIMITS = SendLimits(timedelta(seconds=30), 0, 0, 0, unverified_credits_per_country=12)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def cached(one_connection: Pool, clock: ManualClock) -> Replica:
    """A replica with one connection and a cached account, after two sends: to an address and to a phone."""
    await fund(one_connection, 100)
    await set_alert(one_connection, 50)
    replica = Replica(one_connection, limits=LIMITS, clock=clock)
    await replica.send()
    await replica.send("+6281234567890", channel=Channel.SMS)
    return replica


async def cache_uses(replica: Replica) -> int:
    """How often the replica decided a send on a cached account: runs of the statement that expects it unchanged.

    Accounts with nulls have a statement of their own.
    """
    async with acquire(replica.pool) as connection:
        cursor = await connection.execute(
            "SELECT coalesce(sum(generic_plans + custom_plans), 0) FROM pg_prepared_statements"
            " WHERE statement LIKE 'WITH unchanged%'"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_from_the_third_on_lone_sends_are_decided_on_the_cached_account(cached: Replica) -> None:
    assert await cache_uses(cached) == 0
    mail = await cached.send()
    text = await cached.send("+6281234567891", channel=Channel.SMS)
    assert await cache_uses(cached) == 2
    assert [(one.delivery.ledger_sequence, one.delivery.balance_after) for one in (mail, text)] == [(4, 95), (5, 92)]
    assert await spent(cached.pool) == [1, 3, 1, 3]
    assert [await stored(cached.pool, one.record.otp) for one in (mail, text)] == [mail.record, text.record]
    assert [one.delivery for one in cached.accepted[2:]] == [mail.delivery, text.delivery]
    assert await count_rows(cached.pool, "outbox") == 4


async def test_a_lone_send_writes_no_arrays(cached: Replica) -> None:
    await cached.send()
    async with acquire(cached.pool) as connection:
        cursor = await connection.execute(
            "SELECT statement FROM pg_prepared_statements WHERE statement ~ '^(INSERT|UPDATE).*unnest'"
        )
        assert await cursor.fetchall() == []


async def send_elsewhere(other: Replica) -> None:
    await other.send()


async def add_credits(other: Replica) -> None:
    await fund(other.pool, 10)


async def change_threshold(other: Replica) -> None:
    await set_alert(other.pool, 96)  # the balance that is left: not low yet


async def set_alert(pool: Pool, low_balance_threshold: int) -> None:
    await update_alerts(
        pool,
        "acme",
        low_balance_threshold=low_balance_threshold,
        alert_email="billing@example.com",
        default_threshold=0,
        now=utc_now(),
    )


async def test_a_suspension_stops_cached_and_other_sends_but_no_verification(
    cached: Replica, other_replica: Replica
) -> None:
    before = await cached.send()
    uses = await cache_uses(cached)
    now = utc_now()
    await suspend(other_replica.pool, "acme", reason="abuse", created_by="ann", low_balance_threshold=0, now=now)
    with pytest.raises(OrganizationSuspended):
        await cached.send()
    assert await cache_uses(cached) == uses + 1  # the account that the cache has is not suspended
    sends = [cached.send() for _ in range(3)] + [cached.resend(before.record.otp)]
    refused = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(one) for one in refused] == [OrganizationSuspended] * 4
    assert (await cached.verify(before.record.otp)).verify_time
    assert await spent(cached.pool) == [1, 3, 1]

    assert await resume(other_replica.pool, "acme")
    await cached.send()
    assert await spent(cached.pool) == [1, 3, 1, 1]


@pytest.mark.parametrize("change", [send_elsewhere, add_credits, change_threshold])
async def test_an_account_that_another_replica_changed_is_read_again(
    cached: Replica, other_replica: Replica, change: Callable[[Replica], Awaitable[None]]
) -> None:
    await change(other_replica)
    sent = await cached.send()
    entries = await ledger(cached.pool)
    assert sent.delivery.ledger_sequence == entries[-1].sequence == len(entries)
    assert all(later.balance_after == earlier.balance_after + later.credits for earlier, later in pairwise(entries))
    assert sent.low_balance is (change is change_threshold)
    assert await cache_uses(cached) == 1


async def test_an_account_that_another_replica_sends_from_is_not_used_from_the_cache(
    cached: Replica, other_replica: Replica
) -> None:
    for _ in range(5):
        await other_replica.send()
        await cached.send()
    assert await cache_uses(cached) == 1
    assert await spent(cached.pool) == [1, 3] + [1] * 10


async def test_a_repeat_is_answered_with_the_first_send(cached: Replica) -> None:
    request_id = uuid4()
    first = await cached.send("bob@example.com", request_id=request_id)
    again = await cached.send("bob@example.com", request_id=request_id)
    assert (again.replayed, again.delivery, again.record) == (True, first.delivery, first.record)
    assert await spent(cached.pool) == [1, 3, 1]


async def test_another_request_with_the_same_id_is_refused(cached: Replica) -> None:
    request_id = uuid4()
    await cached.send(request_id=request_id)
    with pytest.raises(RequestIdReused):
        await cached.send(request_id=request_id, purpose="payment")
    assert await cache_uses(cached) == 2
    assert await spent(cached.pool) == [1, 3, 1]


async def test_a_destination_that_was_sent_to_has_its_cooldown(cached: Replica, clock: ManualClock) -> None:
    await cached.send("bob@example.com")
    with pytest.raises(ResendTooSoon):
        await cached.send("bob@example.com")
    clock.advance(seconds=30)
    assert not (await cached.send("bob@example.com")).replayed
    await cached.send()
    assert await cache_uses(cached) == 4
    assert await spent(cached.pool) == [1, 3, 1, 1, 1]


async def test_the_limit_of_unverified_credits_holds_on_a_cached_account(cached: Replica) -> None:
    for number in range(1, 4):
        await cached.send(f"+628123456789{number}", channel=Channel.SMS)
    assert await cache_uses(cached) == 3
    with pytest.raises(TooManySends):
        await cached.send("+6281234567894", channel=Channel.SMS)
    assert await spent(cached.pool) == [1, 3, 3, 3, 3]


async def test_a_cached_account_cannot_be_overdrawn(cached: Replica) -> None:
    await fund(cached.pool, -95)
    for _ in range(2):
        with pytest.raises(InsufficientCredits):
            await cached.send("+6281234567895", channel=Channel.SMS)
    last = await cached.send()
    assert last.delivery.balance_after == 0
    with pytest.raises(InsufficientCredits):
        await cached.send()


async def test_a_balance_that_becomes_low_makes_one_notice(cached: Replica) -> None:
    await set_alert(cached.pool, 94)
    answers = [await cached.send() for _ in range(6)]
    assert await cache_uses(cached) >= 3
    assert [answer.low_balance for answer in answers] == [False, False, True, True, True, True]
    assert await count_rows(cached.pool, "notices") == 1


async def test_a_deadline_that_passes_while_the_account_is_locked_is_not_charged(
    cached: Replica, other_pool: Pool, clock: ManualClock
) -> None:
    async with transaction(other_pool) as holder:
        await holder.execute("SELECT FROM accounts FOR UPDATE")
        late = asyncio.create_task(cached.send(deadline=clock() + timedelta(seconds=1)))
        await wait_for_blocked_backend(other_pool)
        clock.advance(seconds=2)
    with pytest.raises(DeadlineExceeded):
        await late
    assert await cache_uses(cached) == 1
    assert await spent(cached.pool) == [1, 3]
