"""What is sent instead of a delivery that definitely failed: in order, once, and only what worked stays charged."""

import asyncio
from datetime import timedelta

import pytest

from server.channels.channel import Outcome, OutcomeKind
from server.otps.limits import SendLimits
from server.otps.otp import Delivery, DeliveryStatus
from server.otps.settlement import Report
from server.otps.targets import Address
from server.sandbox.providers import Answer, twilio_error, whatsapp_error
from tests.integration.deliveries.post import EMAIL, LEASE, SMS, WHATSAPP, OpenPost, Post, Windows

SENT, FAILED, UNKNOWN = DeliveryStatus.SENT, DeliveryStatus.FAILED, DeliveryStatus.UNKNOWN
NO_SUCH_NUMBER, NOT_ON_WHATSAPP = twilio_error(21211), whatsapp_error(131026)
REJECTED = Outcome(OutcomeKind.REJECTED_DESTINATION, "whatsapp", failure_reason="whatsapp_131026")


def story(deliveries: list[Delivery]) -> list[tuple[str, DeliveryStatus, bool]]:
    return [(one.channel.value, one.status, one.refunded) for one in deliveries]


async def test_only_what_worked_stays_charged_and_the_caller_sees_all_of_it(post: Post, windows: Windows) -> None:
    windows.sandbox.play("whatsapp", NOT_ON_WHATSAPP)
    windows.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await post.deliver(WHATSAPP, SMS, EMAIL)

    whatsapp, sms, email = deliveries
    assert story(deliveries) == [("WHATSAPP", FAILED, True), ("SMS", FAILED, True), ("EMAIL", SENT, False)]
    assert await post.ledger() == [
        ("SEND", -2, whatsapp.delivery_id),
        ("REFUND", 2, whatsapp.delivery_id),
        ("SEND", -3, sms.delivery_id),
        ("REFUND", 3, sms.delivery_id),
        ("SEND", -1, email.delivery_id),
    ]
    assert await post.credits() == 999
    assert (email.request_id, email.masked_destination) == (email.delivery_id, "b***@example.com")


async def test_every_fallback_carries_the_same_code(post: Post, windows: Windows) -> None:
    windows.sandbox.play("whatsapp", NOT_ON_WHATSAPP)

    await post.deliver(WHATSAPP, SMS)

    whatsapp, sms = windows.sandbox.received
    assert sms.text.startswith(whatsapp.text)


@pytest.mark.parametrize("answer", [Answer(503), None])
async def test_what_may_have_arrived_has_no_fallback(post: Post, windows: Windows, answer: Answer | None) -> None:
    windows.sandbox.play("twilio", *([answer] if answer else []))

    deliveries = await post.deliver(SMS, EMAIL)

    assert story(deliveries) == [("SMS", UNKNOWN if answer else SENT, False)]
    assert windows.relay.mails == []


async def test_when_every_fallback_fails_nothing_was_paid(post: Post, windows: Windows) -> None:
    windows.sandbox.play("whatsapp", NOT_ON_WHATSAPP)
    windows.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await post.deliver(WHATSAPP, SMS)

    assert [one.status for one in deliveries] == [FAILED, FAILED]
    assert await post.credits() == 1000


async def test_a_fallback_that_the_account_cannot_pay_leaves_the_failure_standing(
    open_post: OpenPost, windows: Windows
) -> None:
    post = open_post()
    await post.fund(2)
    windows.sandbox.play("whatsapp", NOT_ON_WHATSAPP)

    deliveries = await post.deliver(WHATSAPP, SMS, EMAIL)

    assert story(deliveries) == [("WHATSAPP", FAILED, True)]
    assert await post.credits() == 2
    assert windows.relay.mails == []


async def test_the_refund_helps_to_pay_the_fallback(open_post: OpenPost, windows: Windows) -> None:
    post = open_post()
    await post.fund(3)
    windows.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await post.deliver(SMS, WHATSAPP)

    assert story(deliveries) == [("SMS", FAILED, True), ("WHATSAPP", SENT, False)]
    assert await post.credits() == 1


async def test_a_channel_that_is_not_configured_any_more_is_skipped(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(closed=True)
    await post.fund(10)
    accepted = await post.send(WHATSAPP, SMS, EMAIL)
    channels = windows.channels()
    del channels[SMS.channel]
    later = open_post(channels, clock=post.clock)
    windows.sandbox.play("whatsapp", NOT_ON_WHATSAPP)

    await later.watch(ahead=LEASE)

    assert story(await post.deliveries(accepted)) == [("WHATSAPP", FAILED, True), ("EMAIL", SENT, False)]


@pytest.mark.parametrize("closing", ["expired", "canceled"])
async def test_a_closed_otp_has_no_fallback(open_post: OpenPost, closing: str) -> None:
    post = open_post(closed=True)
    await post.fund(10)
    accepted = await post.send(WHATSAPP, EMAIL)
    errand = post.errand(accepted, fallbacks_sealed=await sealed(post))
    if closing == "expired":
        post.clock.time = accepted.record.otp.expire_time
    else:
        await post.cancel(accepted)

    fallbacks = await post.outcomes.record([Report(errand, REJECTED)])

    assert fallbacks == []
    assert story(await post.deliveries(accepted)) == [("WHATSAPP", FAILED, True)]


async def test_an_outcome_that_is_recorded_many_times_makes_one_fallback(post: Post) -> None:
    post.closed = True
    accepted = await post.send(WHATSAPP, EMAIL, SMS)
    errand = post.errand(accepted, fallbacks_sealed=await sealed(post))

    together = await post.outcomes.record([Report(errand, REJECTED)] * 3)
    again = await asyncio.gather(*(post.outcomes.record([Report(errand, REJECTED)]) for _ in range(5)))

    assert len(together) == 1
    assert again == [[]] * 5
    assert story(await post.deliveries(accepted)) == [
        ("WHATSAPP", FAILED, True),
        ("EMAIL", DeliveryStatus.QUEUED, False),
    ]
    assert await post.outbox_count() == 1


async def test_a_crash_before_the_fallback_left_loses_nothing(post: Post, windows: Windows) -> None:
    post.closed = True
    accepted = await post.send(WHATSAPP, EMAIL, SMS)
    await post.outcomes.record([Report(post.errand(accepted, fallbacks_sealed=await sealed(post)), REJECTED)])
    windows.relay.play("RCPT", "550 5.1.1 no such user")

    taken = [await post.watch(ahead=LEASE / 2), await post.watch(ahead=LEASE / 2)]

    assert taken == [0, 1]
    assert story(await post.deliveries(accepted)) == [
        ("WHATSAPP", FAILED, True),
        ("EMAIL", FAILED, True),
        ("SMS", SENT, False),
    ]
    assert await post.credits() == 997


async def test_a_transient_failure_gives_way_to_a_fallback_while_a_person_still_waits(
    post: Post, windows: Windows
) -> None:
    windows.relay.play("MAIL", *["451 4.3.0 later"] * 100)
    accepted = await post.send(EMAIL, SMS)
    sent = post.clock()
    await post.idle()

    while len(await post.deliveries(accepted)) == 1:
        await post.watch(ahead=timedelta(seconds=1))

    assert timedelta(seconds=5) < post.clock() - sent < timedelta(seconds=20)
    assert story(await post.deliveries(accepted)) == [("EMAIL", FAILED, True), ("SMS", SENT, False)]


async def test_the_cooldown_does_not_hold_a_fallback_up(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(limits=SendLimits(timedelta(minutes=10), 0, 0, 1))
    await post.fund(100)
    await post.deliver(EMAIL)
    post.clock.time += timedelta(minutes=1)
    windows.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await post.deliver(SMS, EMAIL)

    assert story(deliveries) == [("SMS", FAILED, True), ("EMAIL", SENT, False)]


async def test_a_destination_that_had_too_many_sends_is_passed_over(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(limits=SendLimits(timedelta(), 1, 0, 0))
    await post.fund(100)
    other = Address(EMAIL.channel, "ann@example.com", "destination.email")
    await post.deliver(EMAIL)
    windows.sandbox.play("twilio", NO_SUCH_NUMBER)

    deliveries = await post.deliver(SMS, EMAIL, other)

    assert [one.masked_destination for one in deliveries if one.status is SENT] == ["a***@example.com"]
    assert len(deliveries) == 2


async def test_a_fallback_counts_for_its_destinations_limit(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(limits=SendLimits(timedelta(), 1, 0, 0))
    await post.fund(100)
    windows.sandbox.play("twilio", NO_SUCH_NUMBER)
    await post.deliver(SMS, EMAIL)

    preview = await post.preview(EMAIL)

    assert preview.refusal is not None
    assert preview.refusal.reason == "TOO_MANY_SENDS"


async def test_fallbacks_that_no_key_opens_any_more_leave_the_failure_standing(post: Post) -> None:
    post.closed = True
    accepted = await post.send(WHATSAPP)
    other = post.vault.seal("[]", organization_id="another")

    fallbacks = await post.outcomes.record([Report(post.errand(accepted, fallbacks_sealed=other), REJECTED)])

    assert fallbacks == []
    assert story(await post.deliveries(accepted)) == [("WHATSAPP", FAILED, True)]


async def sealed(post: Post) -> bytes:
    """The fallbacks of the only delivery in the outbox."""
    return bytes((await post.rows("SELECT fallbacks_sealed FROM outbox"))[0][0])
