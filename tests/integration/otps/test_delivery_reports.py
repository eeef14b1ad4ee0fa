"""Delivery reports: in any order and any number, they end a delivery once."""

from datetime import datetime, timedelta
from itertools import permutations
from uuid import uuid4

import pytest

from server.clock import utc_now
from server.errors import DeliveryNotFound
from server.otps.delivery.reports import report_delivery
from server.otps.otp import Delivery, DeliveryStatus
from server.providers.provider import OutcomeKind
from tests.integration.otps.replica import Replica, count_rows, fund, ledger, stored

SENT, DELIVERED, FAILED, UNKNOWN = (
    DeliveryStatus.SENT,
    DeliveryStatus.DELIVERED,
    DeliveryStatus.FAILED,
    DeliveryStatus.UNKNOWN,
)


async def report(
    replica: Replica,
    delivery: Delivery,
    status: DeliveryStatus,
    *,
    refund_accepted: bool = False,
    organization_id: str = "acme",
    report_time: datetime | None = None,
) -> Delivery:
    return await report_delivery(
        replica.pool,
        organization_id,
        delivery.delivery_id,
        status=status,
        failure_reason="absent" if status is FAILED else "",
        refund_accepted=refund_accepted,
        now=utc_now(),
        report_time=report_time,
    )


@pytest.mark.parametrize("refund_accepted", [True, False])
@pytest.mark.parametrize("outcome", [None, OutcomeKind.ACCEPTED, OutcomeKind.UNKNOWN])
async def test_the_first_of_delivered_and_failed_stands_in_every_order(
    replica: Replica, outcome: OutcomeKind | None, *, refund_accepted: bool
) -> None:
    await fund(replica.pool, 100)
    for order in permutations([SENT, DELIVERED, FAILED]):
        sent = await replica.send()
        if outcome:
            await replica.record_outcome(sent, outcome)
        for status in order:
            first = await report(replica, sent.delivery, status, refund_accepted=refund_accepted)
            assert await report(replica, sent.delivery, status, refund_accepted=refund_accepted) == first
        (delivery,) = (await stored(replica.pool, sent.record.otp)).deliveries
        failed = order.index(FAILED) < order.index(DELIVERED)
        never_accepted = outcome is OutcomeKind.UNKNOWN and order[0] is FAILED
        assert delivery.status is (FAILED if failed else DELIVERED)
        assert delivery.refunded is (failed and (refund_accepted or never_accepted))
        assert delivery.failure_reason == ("absent" if failed else "")
        refunds = [one for one in await ledger(replica.pool) if one.reference_id == delivery.delivery_id][1:]
        assert [refund.credits for refund in refunds] == [1] * delivery.refunded
    assert await count_rows(replica.pool, "outbox") == 0


async def test_each_change_of_a_delivery_has_its_time(replica: Replica) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send()
    accepted = sent.delivery.create_time
    (queued,) = (await stored(replica.pool, sent.record.otp)).deliveries
    await replica.record_outcome(sent, OutcomeKind.UNKNOWN)
    (unknown,) = (await stored(replica.pool, sent.record.otp)).deliveries
    # A provider's time is kept, unless it is before the last change or after now: it has a clock of its own.
    await report(replica, sent.delivery, SENT, report_time=accepted - timedelta(hours=1))
    between = unknown.update_time + (utc_now() - unknown.update_time) / 2
    await report(replica, sent.delivery, DELIVERED, report_time=between)

    (delivered,) = (await stored(replica.pool, sent.record.otp)).deliveries
    assert (queued.provider, queued.changes, unknown.provider) == ("", [], "console")
    assert unknown.changes == [(UNKNOWN, unknown.update_time)]
    assert delivered.changes == [(UNKNOWN, unknown.update_time), (SENT, unknown.update_time), (DELIVERED, between)]


async def test_a_report_from_the_future_is_of_now(replica: Replica) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send()
    before = utc_now()
    reported = await report(replica, sent.delivery, FAILED, report_time=before + timedelta(days=9))
    ((status, time),) = reported.changes
    assert (status, before <= time <= utc_now()) == (FAILED, True)


async def test_an_outcome_that_comes_after_a_report_changes_nothing(replica: Replica) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send()
    delivered = await report(replica, sent.delivery, DELIVERED)
    for kind in OutcomeKind:
        await replica.record_outcome(sent, kind)
    assert (await stored(replica.pool, sent.record.otp)).deliveries == [delivered]


async def test_no_report_changes_a_refunded_delivery(replica: Replica) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send()
    await replica.record_outcome(sent, OutcomeKind.REJECTED_DESTINATION)
    for status in (SENT, DELIVERED, FAILED):
        reported = await report(replica, sent.delivery, status, refund_accepted=True)
        assert (reported.status, reported.refunded) == (FAILED, True)
    assert len(await ledger(replica.pool)) == 3


async def test_a_report_on_an_unknown_delivery_or_another_organizations_is_not_found(replica: Replica) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send()
    with pytest.raises(DeliveryNotFound):
        await report(replica, sent.delivery, FAILED, organization_id="other")
    sent.delivery.delivery_id = uuid4()
    with pytest.raises(DeliveryNotFound):
        await report(replica, sent.delivery, FAILED)
