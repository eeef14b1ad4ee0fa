"""Fallbacks of a delivery that was sent, or may have been: after a reported failure, or after a delay."""

import asyncio
from datetime import timedelta

import pytest

from server.errors import AccountBusy
from server.otps.otp import Delivery, DeliveryStatus
from server.otps.recipients import RawDestination
from server.sandbox.providers import Answer
from tests.integration.delivery.harness import (
    ACME,
    EMAIL,
    LEASE,
    SMS,
    WHATSAPP,
    DeliveryHarness,
    OpenHarness,
    ProviderStandIns,
)
from tests.integration.otps.backends import open_as_owner

SENT, DELIVERED, FAILED = DeliveryStatus.SENT, DeliveryStatus.DELIVERED, DeliveryStatus.FAILED
UNKNOWN = DeliveryStatus.UNKNOWN
TTL = timedelta(minutes=5)
AFTER = timedelta(seconds=30)
LATE_SMS = SMS._replace(after_seconds=AFTER.total_seconds())


def summaries(deliveries: list[Delivery]) -> list[tuple[str, DeliveryStatus, bool]]:
    return [(one.channel.value, one.status, one.refunded) for one in deliveries]


@pytest.mark.parametrize("refund_accepted", [True, False])
async def test_a_failure_that_is_reported_while_the_code_is_good_sends_the_fallback(
    harness: DeliveryHarness, *, refund_accepted: bool
) -> None:
    accepted = await harness.send(WHATSAPP, SMS, EMAIL)
    await harness.idle()
    (first,) = await harness.deliveries(accepted)

    await harness.report(first, FAILED, reason="whatsapp_131026", refund_accepted=refund_accepted)
    assert await harness.fall_back() == 1

    assert summaries(await harness.deliveries(accepted)) == [
        ("WHATSAPP", FAILED, refund_accepted),
        ("SMS", SENT, False),
    ]
    assert await harness.credits() == 1000 - 3 - (0 if refund_accepted else 2)
    assert (await harness.fall_back(), await harness.take_over(after=LEASE)) == (0, 0)


async def test_the_fallback_of_a_fallback_is_sent_too(harness: DeliveryHarness) -> None:
    accepted = await harness.send(WHATSAPP, SMS, EMAIL)
    await harness.idle()
    for position in (0, 1):
        await harness.report((await harness.deliveries(accepted))[position], FAILED)
        assert await harness.fall_back() == 1

    assert summaries(await harness.deliveries(accepted))[2] == ("EMAIL", SENT, False)


@pytest.mark.parametrize("status", [SENT, UNKNOWN])
async def test_a_delay_without_delivered_sends_the_fallback_and_both_stay_charged(
    harness: DeliveryHarness, stand_ins: ProviderStandIns, status: DeliveryStatus
) -> None:
    if status is UNKNOWN:
        stand_ins.sandbox.play("whatsapp", Answer(503))
    accepted = await harness.send(WHATSAPP, LATE_SMS)
    await harness.idle()

    early = await harness.fall_back(after=AFTER - timedelta(milliseconds=1))
    late = await harness.fall_back(after=timedelta(milliseconds=1))

    assert (early, late) == (0, 1)
    assert summaries(await harness.deliveries(accepted)) == [("WHATSAPP", status, False), ("SMS", SENT, False)]
    assert await harness.credits() == 1000 - 5


@pytest.mark.parametrize("ending", ["delivered", "verified", "canceled", "expired", "no delay", "no credits"])
async def test_no_fallback_is_sent_without_need(harness: DeliveryHarness, ending: str) -> None:
    accepted = await harness.send(WHATSAPP, SMS if ending == "no delay" else LATE_SMS)
    await harness.idle()
    (first,) = await harness.deliveries(accepted)
    if ending == "delivered":
        await harness.report(first, DELIVERED)
    elif ending == "verified":
        await harness.verify(accepted)
    elif ending == "canceled":
        await harness.cancel(accepted)
    elif ending == "no credits":
        await harness.fund(-(await harness.credits() - 2))

    sent = await harness.fall_back(after=TTL if ending == "expired" else AFTER)
    sent += await harness.fall_back(after=TTL)

    assert sent == 0
    assert summaries(await harness.deliveries(accepted))[0][1] is (DELIVERED if ending == "delivered" else SENT)
    assert await harness.outbox_count() == 0


@pytest.mark.parametrize("status", [SENT, FAILED])
async def test_a_report_before_the_providers_answer_keeps_the_fallback(
    harness: DeliveryHarness, status: DeliveryStatus
) -> None:
    harness.dispatches = False
    accepted = await harness.send(WHATSAPP, LATE_SMS)
    harness.dispatches = True

    await harness.report(accepted.delivery, status)
    at_once = await harness.fall_back()
    later = await harness.fall_back(after=AFTER)

    assert (at_once, later) == ((1, 0) if status is FAILED else (0, 1))


async def test_another_replica_sends_the_fallbacks_of_one_that_crashed(
    harness: DeliveryHarness, open_harness: OpenHarness
) -> None:
    accepted = await harness.send(WHATSAPP, LATE_SMS)
    await harness.idle()
    await harness.crash()
    other = open_harness(clock=harness.clock, crypto=harness.crypto)

    assert await other.fall_back(after=AFTER) == 1
    assert summaries(await other.deliveries(accepted))[1] == ("SMS", SENT, False)


async def test_two_replicas_send_one_fallback(harness: DeliveryHarness) -> None:
    accepted = await harness.send(WHATSAPP, LATE_SMS)
    await harness.idle()
    harness.clock.now += AFTER
    (first,) = await harness.deliveries(accepted)

    jobs = await asyncio.gather(*(harness.outcomes.fall_back(ACME, [first.delivery_id]) for _ in range(2)))

    assert sorted(len(each) for each in jobs) == [0, 1]


async def test_a_locked_account_delays_the_fallbacks_of_no_other(harness: DeliveryHarness) -> None:
    await harness.fund(10, organization_id="other")
    own = await harness.send(WHATSAPP, LATE_SMS)
    other = await harness.send(WHATSAPP, LATE_SMS, organization_id="other")
    await harness.idle()

    async with await open_as_owner(harness.pool) as owner, owner.transaction():
        await owner.execute(b"SELECT FROM accounts WHERE organization_id = 'acme' FOR UPDATE")
        with pytest.raises(AccountBusy):
            await harness.fall_back(after=AFTER)
        await harness.idle()

    assert [len(await harness.deliveries(each)) for each in (own, other)] == [1, 2]
    assert await harness.fall_back() == 1


async def test_a_waiting_fallback_is_not_sent_as_the_delivery_itself(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    await harness.send(EMAIL, RawDestination(SMS.channel, SMS.text, SMS.field))
    await harness.idle()

    assert await harness.take_over(after=LEASE * 2) == 0
    assert len(stand_ins.relay.mails) == 1
