"""A connection that is lost in the middle of a batch: the batch is repeated, and counts once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from server.channels.channel import OutcomeKind
from server.clock import utc_now
from server.database.pool import Pool, open_pool, transaction
from server.otps.orders import Accepted
from server.otps.otp import DeliveryStatus, OtpStatus
from server.otps.reports import report_delivery
from tests.integration.otps.cut import At, Wire, wire_to
from tests.integration.otps.replica import Replica, count_rows, fund, ledger, spent, stored
from tests.integration.otps.waiting import open_as_owner, someone_waits_for_a_lock


@dataclass
class Wired:
    """A replica whose only connection runs through a wire that the test can break."""

    replica: Replica
    wire: Wire


@pytest.fixture
async def wired(database_url: str) -> AsyncIterator[Wired]:
    async with wire_to(database_url) as (wire, url):
        pool = await open_pool(url, size=1, timeout_seconds=5)
        await fund(pool, 100)
        yield Wired(Replica(pool), wire)
        await pool.close()


breaks = pytest.mark.parametrize("at", At)


@breaks
async def test_sends_are_charged_once_and_handed_over_at_once(wired: Wired, at: At) -> None:
    wired.wire.break_at(at)
    answers = await asyncio.gather(*(wired.replica.send() for _ in range(10)))
    assert wired.wire.breaks == 1
    assert [answer.replayed for answer in answers] == [False] * 10
    assert await spent(wired.replica.pool) == [1] * 10
    handed_over = [one.delivery.delivery_id for one in wired.replica.accepted]
    assert sorted(handed_over) == sorted(answer.delivery.delivery_id for answer in answers)


@breaks
async def test_a_lone_send_on_a_known_account_is_charged_once(wired: Wired, at: At) -> None:
    for _ in range(3):
        await wired.replica.send()
    wired.wire.break_at(at)
    answer = await wired.replica.send()
    assert wired.wire.breaks == 1
    assert (answer.replayed, answer.delivery.ledger_sequence) == (False, 5)
    assert await spent(wired.replica.pool) == [1] * 4
    assert [one.delivery.delivery_id for one in wired.replica.accepted][3:] == [answer.delivery.delivery_id]


@breaks
async def test_a_right_guess_gets_its_ok(wired: Wired, at: At) -> None:
    sent = await wired.replica.send()
    wired.wire.break_at(at)
    verified = await wired.replica.verify(sent.record.otp)
    assert wired.wire.breaks == 1
    assert verified.status is OtpStatus.VERIFIED
    assert (await stored(wired.replica.pool, verified)).otp == verified


@breaks
async def test_a_failure_is_refunded_once(wired: Wired, at: At) -> None:
    sent = await wired.replica.send()
    wired.wire.break_at(at)
    await wired.replica.report(sent, OutcomeKind.REJECTED_DESTINATION)
    assert wired.wire.breaks == 1
    assert [entry.kind for entry in await ledger(wired.replica.pool)] == ["ADJUSTMENT", "SEND", "REFUND"]
    assert await count_rows(wired.replica.pool, "outbox") == 0


@breaks
async def test_a_reported_failure_is_refunded_once(wired: Wired, at: At) -> None:
    delivery = (await wired.replica.send()).delivery
    wired.wire.break_at(at)
    reported = await report_delivery(
        wired.replica.pool,
        "acme",
        delivery.delivery_id,
        status=DeliveryStatus.FAILED,
        failure_reason="absent",
        refund_accepted=True,
        now=utc_now(),
    )
    assert wired.wire.breaks == 1
    assert (reported.status, reported.refunded) == (DeliveryStatus.FAILED, True)
    assert [entry.kind for entry in await ledger(wired.replica.pool)] == ["ADJUSTMENT", "SEND", "REFUND"]


async def test_a_backend_that_is_terminated_while_it_waits_is_replaced_and_charges_once(pool: Pool) -> None:
    replica = Replica(pool)
    await fund(pool, 100)
    async with transaction(pool) as holder:
        await holder.execute("SELECT FROM accounts FOR UPDATE")
        sends = [asyncio.create_task(replica.send()) for _ in range(10)]
        victim = await someone_waits_for_a_lock(pool)
        async with await open_as_owner(pool) as owner:
            await owner.execute("SELECT pg_terminate_backend(%s)", [victim])
        assert await someone_waits_for_a_lock(pool) != victim
    answers = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Accepted] * 10
    assert await spent(pool) == [1] * 10
