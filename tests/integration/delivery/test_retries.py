"""Retries while a provider accepts nothing: when a delivery is tried again, when it fails, and where it waits."""

from datetime import timedelta

from server.otps.otp import DeliveryStatus
from server.sandbox.providers import json_answer, twilio_error, vonage_status
from tests.integration.delivery.harness import (
    EMAIL,
    LEASE,
    SMS,
    WHATSAPP,
    DeliveryHarness,
    OpenHarness,
    ProviderStandIns,
)

QUEUED, SENT, FAILED = DeliveryStatus.QUEUED, DeliveryStatus.SENT, DeliveryStatus.FAILED
BUSY = "451 4.3.0 later"
SECOND = timedelta(seconds=1)


async def test_a_message_that_was_not_sent_is_retried_with_exponential_backoff(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.relay.play("MAIL", *[BUSY] * 4)

    accepted = await harness.send(EMAIL)
    await harness.idle()
    taken = [await harness.take_over(after=0.5 * SECOND) for _ in range(30)]

    (delivery,) = await harness.deliveries(accepted)
    assert [position for position, count in enumerate(taken, start=1) if count] == [2, 6, 14, 30]
    assert (delivery.status, len(stand_ins.relay.mails)) == (SENT, 1)
    assert await harness.ledger() == [("SEND", -1, delivery.delivery_id)]


async def test_the_providers_retry_after_is_waited_for(harness: DeliveryHarness, stand_ins: ProviderStandIns) -> None:
    stand_ins.sandbox.play("twilio", json_answer({"code": 20429}, status=429, headers={"Retry-After": "40"}))
    stand_ins.sandbox.play("vonage", json_answer({}, status=429, headers={"Retry-After": "40"}))

    (delivery,) = await harness.deliver(SMS)

    assert delivery.status is QUEUED
    assert [await harness.take_over(after=20 * SECOND), await harness.take_over(after=20 * SECOND)] == [0, 1]


async def test_a_message_that_was_never_sent_is_refunded_before_its_code_expires(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.relay.play("MAIL", *[BUSY] * 100)
    accepted = await harness.send(EMAIL, ttl=timedelta(seconds=60))
    await harness.idle()

    while (await harness.deliveries(accepted))[0].status is QUEUED:
        await harness.take_over(after=5 * SECOND)

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (FAILED, True, "smtp_451")
    assert harness.clock() < accepted.record.otp.expire_time
    assert await harness.credits() == 1000
    assert await harness.outbox_count() == 0


async def test_a_message_whose_code_expired_while_it_waited_is_refunded_and_not_sent(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.relay.play("MAIL", BUSY)
    accepted = await harness.send(EMAIL, ttl=timedelta(seconds=30))
    await harness.idle()

    await harness.take_over(after=31 * SECOND)

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.refunded, delivery.failure_reason, stand_ins.relay.mails) == (True, "otp_expired", [])


async def test_a_message_of_a_canceled_otp_is_not_sent(harness: DeliveryHarness, stand_ins: ProviderStandIns) -> None:
    stand_ins.relay.play("MAIL", BUSY)
    accepted = await harness.send(EMAIL)
    await harness.idle()
    await harness.cancel(accepted)

    await harness.take_over(after=SECOND)

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.refunded, delivery.failure_reason) == (True, "otp_canceled")
    assert stand_ins.relay.mails == []
    assert await harness.credits() == 1000


async def test_a_message_of_a_verified_otp_is_not_sent(harness: DeliveryHarness, stand_ins: ProviderStandIns) -> None:
    stand_ins.relay.play("MAIL", BUSY)
    accepted = await harness.send(WHATSAPP, EMAIL._replace(after_seconds=30))
    await harness.idle()
    await harness.fall_back(after=30 * SECOND)
    await harness.verify(accepted)

    await harness.take_over(after=SECOND)

    first, second = await harness.deliveries(accepted)
    assert (first.refunded, second.refunded, second.failure_reason) == (False, True, "otp_verified")
    assert stand_ins.relay.mails == []


async def test_a_job_that_waited_in_memory_is_read_again_before_it_is_sent(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(fresh_for=timedelta())
    await harness.fund(10)
    harness.dispatches = False
    canceled, moved, sent = [await harness.send(destination) for destination in (SMS, WHATSAPP, EMAIL)]
    jobs = [harness.job(one) for one in (canceled, moved, sent)]
    await harness.cancel(canceled)
    await harness.rows(
        "UPDATE outbox SET next_attempt_time = now() + interval '1 hour' WHERE delivery_id = %s RETURNING 1",
        moved.delivery.delivery_id,
    )

    harness.dispatcher.enqueue(jobs)
    await harness.idle()

    statuses = [(await harness.deliveries(one))[0].status for one in (canceled, moved, sent)]
    assert statuses == [FAILED, QUEUED, SENT]
    assert (len(stand_ins.sandbox.received), len(stand_ins.relay.mails)) == (0, 1)


async def test_a_backlog_waits_in_the_database_and_not_in_memory(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(queue=5, concurrency=2)
    await harness.fund(300)
    stand_ins.sandbox.play("twilio", *[twilio_error(20429, status=429)] * 120)
    stand_ins.sandbox.play("vonage", *[vonage_status("1")] * 120)

    sent = [await harness.send(SMS) for _ in range(60)]
    await harness.idle()
    most = 0
    while stand_ins.sandbox._next["twilio"]:
        most = max(most, await harness.take_over(after=LEASE / 4))
    while await harness.outbox_count():
        assert await harness.take_over(after=LEASE / 4) <= 5

    statuses = {(await harness.deliveries(one))[0].status for one in sent}
    charged = sum([not (await harness.deliveries(one))[0].refunded for one in sent])
    assert (most, statuses <= {SENT, FAILED}) == (4, True)  # the fifth place is for other channels
    assert charged == sum(call.provider == "twilio" for call in stand_ins.sandbox.received) - 120
    assert await harness.credits() == 300 - 3 * charged


async def test_one_organizations_backlog_leaves_queue_places_for_another(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(queue=10, dispatches=False)
    for organization_id in ("busy", "quiet"):
        await harness.fund(100, organization_id)
    for _ in range(30):
        await harness.send(EMAIL, organization_id="busy")
    quiet = await harness.send(EMAIL, organization_id="quiet")

    await harness.take_over(after=LEASE)

    assert (await harness.deliveries(quiet))[0].status is SENT
    assert len(stand_ins.relay.mails) == 8  # two places are for other channels
