"""Lone sends on a known account: one round trip, and exactly what the long way would have done."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest

from server.channels.channel import ChannelName
from server.clock import utc_now
from server.credits.alerts import update_alerts
from server.database.pool import Pool, connection, transaction
from server.errors import DeadlineExceeded, InsufficientCredits, RequestIdReused, ResendTooSoon, TooManySends
from server.otps.limits import SendLimits
from tests.integration.otps.replica import HandClock, Replica, count_rows, fund, ledger, spent, stored
from tests.integration.otps.waiting import someone_waits_for_a_lock

LIMITS = SendLimits(timedelta(seconds=30), 0, 0, 0, unverified_credits_per_country=12)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def knowing(one_connection: Pool, clock: HandClock) -> Replica:
    """A replica with one connection that has sent twice, to an address and to a phone, and so knows the account."""
    await fund(one_connection, 100)
    await alert(one_connection, 50)
    replica = Replica(one_connection, limits=LIMITS, clock=clock)
    await replica.send()
    await replica.send("+6281234567890", channel=ChannelName.SMS)
    return replica


async def guesses(replica: Replica) -> int:
    """How often the replica's connection was to find an account unchanged; nulls have a statement of their own."""
    async with connection(replica.pool) as lent:
        cursor = await lent.execute(
            "SELECT coalesce(sum(generic_plans + custom_plans), 0) FROM pg_prepared_statements"
            " WHERE statement LIKE 'SELECT 1 / coalesce%'"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_from_the_third_on_lone_sends_are_decided_on_what_is_known(knowing: Replica) -> None:
    assert await guesses(knowing) == 0
    mail = await knowing.send()
    text = await knowing.send("+6281234567891", channel=ChannelName.SMS)
    assert await guesses(knowing) == 2
    assert [(one.delivery.ledger_sequence, one.delivery.balance_after) for one in (mail, text)] == [(4, 95), (5, 92)]
    assert await spent(knowing.pool) == [1, 3, 1, 3]
    assert [await stored(knowing.pool, one.record.otp) for one in (mail, text)] == [mail.record, text.record]
    assert [one.delivery for one in knowing.accepted[2:]] == [mail.delivery, text.delivery]
    assert await count_rows(knowing.pool, "outbox") == 4


async def test_a_lone_send_writes_no_arrays(knowing: Replica) -> None:
    await knowing.send()
    async with connection(knowing.pool) as lent:
        cursor = await lent.execute(
            "SELECT statement FROM pg_prepared_statements WHERE statement ~ '^(INSERT|UPDATE).*unnest'"
        )
        assert await cursor.fetchall() == []


async def another_send(other: Replica) -> None:
    await other.send()


async def more_credits(other: Replica) -> None:
    await fund(other.pool, 10)


async def another_threshold(other: Replica) -> None:
    await alert(other.pool, 96)  # what is left: not low yet


async def alert(pool: Pool, low_balance_threshold: int) -> None:
    await update_alerts(
        pool,
        "acme",
        low_balance_threshold=low_balance_threshold,
        alert_email="billing@example.com",
        default_threshold=0,
        now=utc_now(),
    )


@pytest.mark.parametrize("change", [another_send, more_credits, another_threshold])
async def test_what_others_changed_is_read_again(
    knowing: Replica, other_replica: Replica, change: Callable[[Replica], Awaitable[None]]
) -> None:
    await change(other_replica)
    sent = await knowing.send()
    entries = await ledger(knowing.pool)
    assert sent.delivery.ledger_sequence == entries[-1].sequence == len(entries)
    assert all(later.balance_after == earlier.balance_after + later.credits for earlier, later in pairwise(entries))
    assert sent.low_balance is (change is another_threshold)
    assert await guesses(knowing) == 1


async def test_an_account_that_others_send_from_is_guessed_no_more(knowing: Replica, other_replica: Replica) -> None:
    for _ in range(5):
        await other_replica.send()
        await knowing.send()
    assert await guesses(knowing) == 1
    assert await spent(knowing.pool) == [1, 3] + [1] * 10


async def test_a_repeat_is_the_first_send(knowing: Replica) -> None:
    request_id = uuid4()
    first = await knowing.send("bob@example.com", request_id=request_id)
    again = await knowing.send("bob@example.com", request_id=request_id)
    assert (again.replayed, again.delivery, again.record) == (True, first.delivery, first.record)
    assert await spent(knowing.pool) == [1, 3, 1]


async def test_another_request_with_the_same_id_is_refused(knowing: Replica) -> None:
    request_id = uuid4()
    await knowing.send(request_id=request_id)
    with pytest.raises(RequestIdReused):
        await knowing.send(request_id=request_id, request=b"another")
    assert await guesses(knowing) == 2
    assert await spent(knowing.pool) == [1, 3, 1]


async def test_a_destination_that_was_sent_to_has_its_cooldown(knowing: Replica, clock: HandClock) -> None:
    await knowing.send("bob@example.com")
    with pytest.raises(ResendTooSoon):
        await knowing.send("bob@example.com")
    clock.advance(seconds=30)
    assert not (await knowing.send("bob@example.com")).replayed
    await knowing.send()
    assert await guesses(knowing) == 4
    assert await spent(knowing.pool) == [1, 3, 1, 1, 1]


async def test_unverified_credits_end_where_they_end_for_all(knowing: Replica) -> None:
    for number in range(1, 4):
        await knowing.send(f"+628123456789{number}", channel=ChannelName.SMS)
    assert await guesses(knowing) == 3
    with pytest.raises(TooManySends):
        await knowing.send("+6281234567894", channel=ChannelName.SMS)
    assert await spent(knowing.pool) == [1, 3, 3, 3, 3]


async def test_the_last_credit_is_the_last(knowing: Replica) -> None:
    await fund(knowing.pool, -95)
    for _ in range(2):
        with pytest.raises(InsufficientCredits):
            await knowing.send("+6281234567895", channel=ChannelName.SMS)
    last = await knowing.send()
    assert last.delivery.balance_after == 0
    with pytest.raises(InsufficientCredits):
        await knowing.send()


async def test_a_balance_that_becomes_low_is_announced_once(knowing: Replica) -> None:
    await alert(knowing.pool, 94)
    answers = [await knowing.send() for _ in range(6)]
    assert await guesses(knowing) >= 3
    assert [answer.low_balance for answer in answers] == [False, False, True, True, True, True]
    assert await count_rows(knowing.pool, "notices") == 1


async def test_a_deadline_that_passes_while_the_account_is_locked_is_not_charged(
    knowing: Replica, other_pool: Pool, clock: HandClock
) -> None:
    async with transaction(other_pool) as holder:
        await holder.execute("SELECT FROM accounts FOR UPDATE")
        late = asyncio.create_task(knowing.send(deadline=clock() + timedelta(seconds=1)))
        await someone_waits_for_a_lock(other_pool)
        clock.advance(seconds=2)
    with pytest.raises(DeadlineExceeded):
        await late
    assert await guesses(knowing) == 1
    assert await spent(knowing.pool) == [1, 3]
