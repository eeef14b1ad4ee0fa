"""Recorded outcomes: ledger, delivery and outbox agree, however often an outcome is recorded."""

import asyncio
from datetime import timedelta

import pytest

from server.otps.otp import DeliveryStatus
from server.postgres.pool import Pool
from server.providers.provider import OutcomeKind
from tests.integration.otps.replica import ManualClock, Replica, count_rows, fund, ledger, stored

CHARGED = ["ADJUSTMENT", "SEND"]
REFUNDED = [*CHARGED, "REFUND"]


@pytest.mark.parametrize(
    ("kind", "status", "entries", "outbox_count"),
    [
        (OutcomeKind.ACCEPTED, DeliveryStatus.SENT, CHARGED, 0),
        (OutcomeKind.REJECTED_DESTINATION, DeliveryStatus.FAILED, REFUNDED, 0),
        (OutcomeKind.REJECTED_CONFIGURATION, DeliveryStatus.FAILED, REFUNDED, 0),
        (OutcomeKind.UNKNOWN, DeliveryStatus.UNKNOWN, CHARGED, 0),
        (OutcomeKind.NOT_SENT, DeliveryStatus.QUEUED, CHARGED, 1),
    ],
)
async def test_ledger_delivery_and_outbox_agree_about_an_outcome_that_is_recorded_repeatedly(
    replica: Replica, kind: OutcomeKind, status: DeliveryStatus, entries: list[str], outbox_count: int
) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send()
    await replica.record_outcome(sent, kind, failure_reason="why")
    # More than one in a batch, too.
    await asyncio.gather(*(replica.record_outcome(sent, kind, failure_reason="why") for _ in range(8)))
    (delivery,) = (await stored(replica.pool, sent.record.otp)).deliveries
    assert (delivery.status, delivery.refunded) == (status, entries == REFUNDED)
    assert [entry.kind for entry in await ledger(replica.pool)] == entries
    assert await count_rows(replica.pool, "outbox") == outbox_count


async def test_a_refund_is_linked_to_its_delivery(replica: Replica) -> None:
    await fund(replica.pool, 10)
    sends = [await replica.send() for _ in range(3)]
    await asyncio.gather(*(replica.record_outcome(sent, OutcomeKind.REJECTED_DESTINATION) for sent in sends))
    refunds = [entry for entry in await ledger(replica.pool) if entry.kind == "REFUND"]
    assert {entry.reference_id for entry in refunds} == {sent.delivery.delivery_id for sent in sends}
    assert [(entry.credits, entry.balance_after) for entry in refunds] == [(1, 8), (1, 9), (1, 10)]


@pytest.mark.parametrize("first", [OutcomeKind.ACCEPTED, OutcomeKind.UNKNOWN, OutcomeKind.REJECTED_DESTINATION])
async def test_the_first_final_outcome_stands(replica: Replica, first: OutcomeKind) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send()
    await replica.record_outcome(sent, first)
    before = await stored(replica.pool, sent.record.otp)
    for later in OutcomeKind:
        await replica.record_outcome(sent, later)
    assert await stored(replica.pool, sent.record.otp) == before


async def test_a_message_that_was_not_sent_before_its_otp_expired_is_refunded(pool: Pool) -> None:
    clock = ManualClock()
    replica = Replica(pool, clock=clock)
    await fund(pool, 10)
    sent = await replica.send(ttl=timedelta(seconds=30))
    clock.now = sent.record.otp.expire_time - timedelta(seconds=1)
    await replica.record_outcome(sent, OutcomeKind.NOT_SENT, failure_reason="busy")
    (delivery,) = (await stored(pool, sent.record.otp)).deliveries
    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (DeliveryStatus.FAILED, True, "busy")
    assert await count_rows(pool, "outbox") == 0
