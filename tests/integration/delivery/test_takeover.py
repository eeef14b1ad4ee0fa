"""The take-over job: it sends the deliveries that a crash left, in this process or another."""

import asyncio
from collections import Counter
from dataclasses import replace

from server.clock import utc_now
from server.jobs import take_over_deliveries
from server.otps.crypto import Crypto
from server.otps.otp import DeliveryStatus
from server.postgres.pool import Pool
from server.providers.guard import Guard, GuardSettings
from server.providers.templates import load_templates
from server.providers.twilio import Twilio, TwilioSettings
from server.sandbox.providers import Answer, Conduct
from tests.integration.delivery.harness import EMAIL, LEASE, SMS, DeliveryHarness, OpenHarness, ProviderStandIns
from tests.integration.otps.replica import ManualClock
from tests.waiting import until

SENT, FAILED = DeliveryStatus.SENT, DeliveryStatus.FAILED


async def test_a_send_that_was_accepted_before_a_crash_is_sent_once_after_it(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    harness.dispatches = False
    accepted = await harness.send(SMS)

    taken = [
        await harness.take_over(after=LEASE / 2),
        await harness.take_over(after=LEASE / 2),
        await harness.take_over(after=LEASE),
    ]

    (delivery,) = await harness.deliveries(accepted)
    assert (taken, delivery.status) == ([0, 1, 0], SENT)
    assert len(stand_ins.sandbox.received) == 1
    assert await harness.ledger() == [("SEND", -3, delivery.delivery_id)]


async def test_a_crash_between_the_provider_and_the_database_repeats_the_same_code(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("twilio", Answer(conduct=Conduct.HANG))
    accepted = await harness.send(SMS)

    await until(lambda: len(stand_ins.sandbox.received) == 1)
    await harness.crash()
    await harness.take_over(after=LEASE)

    (delivery,) = await harness.deliveries(accepted)
    texts = {call.text for call in stand_ins.sandbox.received}
    assert (delivery.status, len(stand_ins.sandbox.received), len(texts)) == (SENT, 2, 1)
    assert await harness.ledger() == [("SEND", -3, delivery.delivery_id)]


async def test_a_message_whose_code_came_back_stays_charged_although_a_crash_lost_its_outcome(
    harness: DeliveryHarness, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("twilio", Answer(conduct=Conduct.HANG))
    accepted = await harness.send(SMS)
    await until(lambda: len(stand_ins.sandbox.received) == 1)
    await harness.crash()
    await harness.verify(accepted)

    await harness.take_over(after=LEASE)

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.status, delivery.failure_reason) == (DeliveryStatus.UNKNOWN, "otp_verified")
    assert len(stand_ins.sandbox.received) == 1
    assert await harness.ledger() == [("SEND", -3, delivery.delivery_id)]


async def test_concurrent_take_over_jobs_of_two_replicas_send_each_message_once(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(dispatches=False)
    other = open_harness(clock=harness.clock)
    await harness.fund(100)
    sent = [await harness.send(EMAIL) for _ in range(40)]
    harness.clock.now += LEASE

    taken = await asyncio.gather(*(one.take_over() for one in (harness, other, harness, other)))

    assert sum(taken) == 40
    assert {(await harness.deliveries(one))[0].status for one in sent} == {SENT}
    assert len(stand_ins.relay.mails) == 40


async def test_a_message_whose_lease_ended_while_it_waited_for_its_provider_is_not_sent(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    """As in a replica that was frozen: another one has sent it meanwhile."""
    clock = ManualClock(utc_now())
    settings = TwilioSettings("AC1", "token", "MG1", base_url=stand_ins.sandbox_url)
    twilio = Twilio(settings, load_templates(None), clock=clock)
    frozen = open_harness({SMS.channel: Guard(twilio, GuardSettings(concurrency=1), clock=clock)}, clock=clock)
    other = open_harness(clock=clock)
    await other.fund(10)
    stand_ins.sandbox.play("twilio", Answer(conduct=Conduct.HANG))
    await frozen.send(SMS)
    await until(lambda: len(stand_ins.sandbox.received) == 1)
    waiting = await frozen.send(SMS._replace(text="+6281234567891"))
    await until(lambda: frozen.dispatcher._free_slots == frozen.concurrency - 2)

    assert await other.take_over(after=LEASE) == 2
    stand_ins.sandbox.release()
    await frozen.idle()

    assert Counter(call.to for call in stand_ins.sandbox.received)["+6281234567891"] == 1
    assert [one.status for one in await other.deliveries(waiting)] == [SENT]


async def test_a_take_over_job_without_free_places_claims_nothing(open_harness: OpenHarness) -> None:
    harness = open_harness(concurrency=0, queue=1, dispatches=False)
    await harness.fund(10)
    await harness.send(EMAIL)
    await harness.send(EMAIL)
    clock = harness.clock
    clock.now += LEASE

    taken = [
        await take_over_deliveries(harness.pool, harness.crypto, harness.dispatcher, lease=LEASE, clock=clock, limit=10)
        for _ in range(2)
    ]

    due = await harness.rows("SELECT 1 FROM outbox WHERE next_attempt_time <= %s", clock())
    assert (taken, len(due)) == ([1, 0], 1)


async def test_a_message_that_no_key_opens_is_refunded(open_harness: OpenHarness) -> None:
    harness = open_harness(dispatches=False)
    await harness.fund(10)
    accepted = await harness.send(EMAIL)
    later = open_harness(crypto=Crypto({"second": b"3" * 32}, digest_secrets={"d1": b"2" * 32}), clock=harness.clock)

    await later.take_over(after=LEASE)

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (FAILED, True, "key_missing")


async def test_a_delivery_of_a_channel_that_is_no_longer_configured_is_refunded(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    harness = open_harness(dispatches=False)
    await harness.fund(10)
    accepted = await harness.send(SMS)
    providers = stand_ins.providers()
    del providers[SMS.channel]
    later = open_harness(providers, clock=harness.clock)

    await later.take_over(after=LEASE)

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.refunded, delivery.failure_reason) == (True, "channel_not_configured")


async def test_an_outcome_is_stored_once_the_database_is_available_again(
    harness: DeliveryHarness, pool: Pool, stand_ins: ProviderStandIns
) -> None:
    stand_ins.sandbox.play("twilio", Answer(201, '{"sid": "SM1"}', conduct=Conduct.HANG))
    accepted = await harness.send(SMS)

    await until(lambda: len(stand_ins.sandbox.received) == 1)
    connections = [await pool.getconn() for _ in range(pool.max_size)]
    timeouts = pool.timeouts
    pool.timeouts = replace(timeouts, connection=0.05)
    stand_ins.sandbox.release()
    await asyncio.sleep(0)

    await until(lambda: pool.get_stats().get("requests_errors", 0) > 0)
    pool.timeouts = timeouts
    for connection in connections:
        await pool.putconn(connection)
    await harness.idle()

    (delivery,) = await harness.deliveries(accepted)
    assert (delivery.status, len(stand_ins.sandbox.received)) == (SENT, 1)
