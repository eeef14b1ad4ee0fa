"""Fallbacks of a delivery that definitely failed: in order, once, and only a send that worked stays charged."""

import asyncio
from datetime import timedelta

import pytest

from server.otps.admission import SendLimits
from server.otps.delivery.outcome_policy import DeliveryResult
from server.otps.otp import Delivery, DeliveryStatus
from server.otps.recipients import RawDestination
from server.providers.provider import Outcome, OutcomeKind
from server.sandbox.providers import Answer, twilio_error, whatsapp_error
from tests.integration.delivery.harness import (
    EMAIL,
    LEASE,
    SMS,
    WHATSAPP,
    DeliveryHarness,
    OpenHarness,
    ProviderStandIns,
)

SENT, FAILED, UNKNOWN = DeliveryStatus.SENT, DeliveryStatus.FAILED, DeliveryStatus.UNKNOWN
NO_SUCH_NUMBER, NOT_ON_WHATSAPP = twilio_error(21211), whatsapp_error(131026)
REJECTED = Outcome(OutcomeKind.REJECTED_DESTINATION, "whatsapp", failure_reason="whatsapp_131026")


def summaries(deliveries: list[Delivery]) -> list[tuple[str, DeliveryStatus, bool]]:
    return [(one.channel.value, one.status, one.refunded) for one in deliveries]


async def test_only_the_send_that_worked_stays_charged_and_all_deliveries_are_listed(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("whatsapp", NOT_ON_WHATSAPP)
    stand_ins.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await harness.deliver(WHATSAPP, SMS, EMAIL)

    whatsapp, sms, email = deliveries
    assert summaries(deliveries) == [("WHATSAPP", FAILED, True), ("SMS", FAILED, True), ("EMAIL", SENT, False)]
    assert await harness.ledger() == [
        ("SEND", -2, whatsapp.delivery_id),
        ("REFUND", 2, whatsapp.delivery_id),
        ("SEND", -3, sms.delivery_id),
        ("REFUND", 3, sms.delivery_id),
        ("SEND", -1, email.delivery_id),
    ]
    assert await harness.credits() == 999
    assert email.masked_destination == "b***@example.com"
    assert await harness.rows("SELECT count(*) FROM requests") == [(1,)]


async def test_every_fallback_carries_the_same_code(harness: DeliveryHarness, stand_ins: ProviderStandIns) -> None:
    stand_ins.sandbox.play("whatsapp", NOT_ON_WHATSAPP)

    await harness.deliver(WHATSAPP, SMS)

    whatsapp, sms = stand_ins.sandbox.received
    assert sms.text.startswith(whatsapp.text)


@pytest.mark.parametrize("answer", [Answer(503), None])
async def test_a_message_that_may_have_arrived_has_no_fallback(
    harness: DeliveryHarness, stand_ins: ProviderStandIns, answer: Answer | None
) -> None:
    stand_ins.sandbox.play("twilio", *([answer] if answer else []))

    deliveries = await harness.deliver(SMS, EMAIL)

    assert summaries(deliveries) == [("SMS", UNKNOWN if answer else SENT, False)]
    assert stand_ins.relay.mails == []


async def test_when_every_fallback_fails_nothing_stays_charged(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("whatsapp", NOT_ON_WHATSAPP)
    stand_ins.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await harness.deliver(WHATSAPP, SMS)

    assert [one.status for one in deliveries] == [FAILED, FAILED]
    assert await harness.credits() == 1000


async def test_a_fallback_that_the_account_cannot_pay_is_not_sent_and_the_delivery_stays_failed(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness()
    await harness.fund(2)
    stand_ins.sandbox.play("whatsapp", NOT_ON_WHATSAPP)

    deliveries = await harness.deliver(WHATSAPP, SMS, EMAIL)

    assert summaries(deliveries) == [("WHATSAPP", FAILED, True)]
    assert await harness.credits() == 2
    assert stand_ins.relay.mails == []


async def test_the_refund_can_pay_for_the_fallback(open_harness: OpenHarness, stand_ins: ProviderStandIns) -> None:
    harness = open_harness()
    await harness.fund(3)
    stand_ins.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await harness.deliver(SMS, WHATSAPP)

    assert summaries(deliveries) == [("SMS", FAILED, True), ("WHATSAPP", SENT, False)]
    assert await harness.credits() == 1


async def test_a_fallback_of_a_channel_that_is_no_longer_configured_is_skipped(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(dispatches=False)
    await harness.fund(10)
    accepted = await harness.send(WHATSAPP, SMS, EMAIL)
    providers = stand_ins.providers()
    del providers[SMS.channel]
    later = open_harness(providers, clock=harness.clock)
    stand_ins.sandbox.play("whatsapp", NOT_ON_WHATSAPP)

    await later.take_over(after=LEASE)

    assert summaries(await harness.deliveries(accepted)) == [("WHATSAPP", FAILED, True), ("EMAIL", SENT, False)]


@pytest.mark.parametrize("closing", ["expired", "canceled"])
async def test_a_closed_otp_has_no_fallback(open_harness: OpenHarness, closing: str) -> None:
    harness = open_harness(dispatches=False)
    await harness.fund(10)
    accepted = await harness.send(WHATSAPP, EMAIL)
    job = harness.job(accepted, fallbacks_sealed=await sealed(harness))
    if closing == "expired":
        harness.clock.now = accepted.record.otp.expire_time
    else:
        await harness.cancel(accepted)

    fallbacks = await harness.outcomes.record([DeliveryResult(job, REJECTED)])

    assert fallbacks == []
    assert summaries(await harness.deliveries(accepted)) == [("WHATSAPP", FAILED, True)]


async def test_an_outcome_that_is_recorded_many_times_makes_one_fallback(harness: DeliveryHarness) -> None:
    harness.dispatches = False
    accepted = await harness.send(WHATSAPP, EMAIL, SMS)
    job = harness.job(accepted, fallbacks_sealed=await sealed(harness))

    together = await harness.outcomes.record([DeliveryResult(job, REJECTED)] * 3)
    again = await asyncio.gather(*(harness.outcomes.record([DeliveryResult(job, REJECTED)]) for _ in range(5)))

    assert len(together) == 1
    assert again == [[]] * 5
    assert summaries(await harness.deliveries(accepted)) == [
        ("WHATSAPP", FAILED, True),
        ("EMAIL", DeliveryStatus.QUEUED, False),
    ]
    assert await harness.outbox_count() == 1


async def test_a_fallback_that_a_crash_interrupted_is_sent_by_the_take_over_job(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    harness.dispatches = False
    accepted = await harness.send(WHATSAPP, EMAIL, SMS)
    await harness.outcomes.record(
        [DeliveryResult(harness.job(accepted, fallbacks_sealed=await sealed(harness)), REJECTED)]
    )
    stand_ins.relay.play("RCPT", "550 5.1.1 no such user")

    taken = [await harness.take_over(after=LEASE / 2), await harness.take_over(after=LEASE / 2)]

    assert taken == [0, 1]
    assert summaries(await harness.deliveries(accepted)) == [
        ("WHATSAPP", FAILED, True),
        ("EMAIL", FAILED, True),
        ("SMS", SENT, False),
    ]
    assert await harness.credits() == 997


async def test_a_transient_failure_is_replaced_by_a_fallback_within_20_seconds(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.relay.play("MAIL", *["451 4.3.0 later"] * 100)
    accepted = await harness.send(EMAIL, SMS)
    sent = harness.clock()
    await harness.idle()

    while len(await harness.deliveries(accepted)) == 1:
        await harness.take_over(after=timedelta(seconds=1))

    assert timedelta(seconds=5) < harness.clock() - sent < timedelta(seconds=20)
    assert summaries(await harness.deliveries(accepted)) == [("EMAIL", FAILED, True), ("SMS", SENT, False)]


async def test_the_cooldown_does_not_delay_a_fallback(open_harness: OpenHarness, stand_ins: ProviderStandIns) -> None:
    harness = open_harness(limits=SendLimits(timedelta(minutes=10), 0, 0, 1))
    await harness.fund(100)
    await harness.deliver(EMAIL)
    harness.clock.now += timedelta(minutes=1)
    stand_ins.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await harness.deliver(SMS, EMAIL)

    assert summaries(deliveries) == [("SMS", FAILED, True), ("EMAIL", SENT, False)]


async def test_a_fallback_whose_destination_had_too_many_sends_is_skipped(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(limits=SendLimits(timedelta(), 1, 0, 0))
    await harness.fund(100)
    other = RawDestination(EMAIL.channel, "ann@example.com", "destination.email")
    await harness.deliver(EMAIL)
    stand_ins.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await harness.deliver(SMS, EMAIL, other)

    assert [one.masked_destination for one in deliveries if one.status is SENT] == ["a***@example.com"]
    assert len(deliveries) == 2


async def test_a_fallback_counts_towards_its_destinations_limit(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(limits=SendLimits(timedelta(), 1, 0, 0))
    await harness.fund(100)
    stand_ins.sandbox.play("twilio", NO_SUCH_NUMBER)
    await harness.deliver(SMS, EMAIL)

    preview = await harness.preview(EMAIL)

    assert preview.refusal is not None
    assert preview.refusal.reason == "TOO_MANY_SENDS"


async def test_fallbacks_that_no_key_opens_are_not_sent_and_the_delivery_stays_failed(harness: DeliveryHarness) -> None:
    harness.dispatches = False
    accepted = await harness.send(WHATSAPP)
    other = harness.crypto.seal("[]", organization_id="another")

    fallbacks = await harness.outcomes.record([DeliveryResult(harness.job(accepted, fallbacks_sealed=other), REJECTED)])

    assert fallbacks == []
    assert summaries(await harness.deliveries(accepted)) == [("WHATSAPP", FAILED, True)]


async def sealed(harness: DeliveryHarness) -> bytes:
    """The fallbacks of the only delivery in the outbox."""
    return bytes((await harness.rows("SELECT fallbacks_sealed FROM outbox"))[0][0])
