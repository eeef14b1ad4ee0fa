"""A provider that cannot take messages now: what is tried again, when it is given up, and where it waits."""

from datetime import timedelta

import pytest

from server.database.batcher import Batching, as_it_is
from server.database.pool import Pool
from server.otps.guessing import Guess, GuessLimits
from server.otps.otp import DeliveryStatus
from server.otps.verifying import Verifier
from server.sandbox.providers import json_answer, twilio_error, vonage_status
from tests.integration.deliveries.post import ACME, EMAIL, LEASE, SMS, WHATSAPP, OpenPost, Post, Windows

QUEUED, SENT, FAILED = DeliveryStatus.QUEUED, DeliveryStatus.SENT, DeliveryStatus.FAILED
BUSY = "451 4.3.0 later"
SECOND = timedelta(seconds=1)


async def test_what_was_not_sent_is_tried_again_after_longer_and_longer_pauses(post: Post, windows: Windows) -> None:
    windows.relay.play("MAIL", *[BUSY] * 4)

    accepted = await post.send(EMAIL)
    await post.idle()
    taken = [await post.watch(ahead=0.5 * SECOND) for _ in range(30)]

    (delivery,) = await post.deliveries(accepted)
    assert [position for position, count in enumerate(taken, start=1) if count] == [2, 6, 14, 30]
    assert (delivery.status, len(windows.relay.mails)) == (SENT, 1)
    assert await post.ledger() == [("SEND", -1, delivery.delivery_id)]


async def test_the_provider_says_when_to_come_back(post: Post, windows: Windows) -> None:
    windows.sandbox.play("twilio", json_answer({"code": 20429}, status=429, headers={"Retry-After": "40"}))
    windows.sandbox.play("vonage", json_answer({}, status=429, headers={"Retry-After": "40"}))

    (delivery,) = await post.deliver(SMS)

    assert delivery.status is QUEUED
    assert [await post.watch(ahead=20 * SECOND), await post.watch(ahead=20 * SECOND)] == [0, 1]


async def test_a_message_that_never_left_is_refunded_before_its_code_expires(post: Post, windows: Windows) -> None:
    windows.relay.play("MAIL", *[BUSY] * 100)
    accepted = await post.send(EMAIL, ttl=timedelta(seconds=60))
    await post.idle()

    while (await post.deliveries(accepted))[0].status is QUEUED:
        await post.watch(ahead=5 * SECOND)

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (FAILED, True, "smtp_451")
    assert post.clock() < accepted.record.otp.expire_time
    assert await post.credits() == 1000
    assert await post.outbox_count() == 0


async def test_a_message_whose_code_expired_while_it_waited_is_refunded_unsent(post: Post, windows: Windows) -> None:
    windows.relay.play("MAIL", BUSY)
    accepted = await post.send(EMAIL, ttl=timedelta(seconds=30))
    await post.idle()

    await post.watch(ahead=31 * SECOND)

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.refunded, delivery.failure_reason, windows.relay.mails) == (True, "otp_expired", [])


@pytest.mark.parametrize("closing", ["canceled", "verified"])
async def test_a_message_of_a_closed_otp_never_leaves(post: Post, pool: Pool, windows: Windows, closing: str) -> None:
    windows.relay.play("MAIL", BUSY)
    accepted = await post.send(EMAIL)
    await post.idle()
    if closing == "canceled":
        await post.cancel(accepted)
    else:
        otp = accepted.record.otp
        verifier = Verifier(pool, post.vault, limits=GuessLimits(), batching=Batching(size=1, linger_seconds=0))
        guess = Guess(ACME, otp.otp_id, accepted.delivery.request_id, post.vault.code_of(otp), b"")
        await verifier.verify(ACME, lambda: guess, as_it_is)

    await post.watch(ahead=SECOND)

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.refunded, delivery.failure_reason) == (True, f"otp_{closing}")
    assert windows.relay.mails == []
    assert await post.credits() == 1000


async def test_a_message_that_waited_in_memory_is_looked_up_again(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(fresh_for=timedelta())
    await post.fund(10)
    post.closed = True
    canceled, moved, sent = [await post.send(address) for address in (SMS, WHATSAPP, EMAIL)]
    errands = [post.errand(one) for one in (canceled, moved, sent)]
    await post.cancel(canceled)
    await post.rows(
        "UPDATE outbox SET next_attempt_time = next_attempt_time + interval '1 s' WHERE delivery_id = %s RETURNING 1",
        moved.delivery.delivery_id,
    )

    post.dispatcher.hand_over(errands)
    await post.idle()

    statuses = [(await post.deliveries(one))[0].status for one in (canceled, moved, sent)]
    assert statuses == [FAILED, QUEUED, SENT]
    assert (len(windows.sandbox.received), len(windows.relay.mails)) == (0, 1)


async def test_a_backlog_waits_in_the_database_and_not_in_memory(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(queue=5, concurrency=2)
    await post.fund(300)
    windows.sandbox.play("twilio", *[twilio_error(20429, status=429)] * 120)
    windows.sandbox.play("vonage", *[vonage_status("1")] * 120)

    sent = [await post.send(SMS) for _ in range(60)]
    await post.idle()
    most = 0
    while windows.sandbox._next["twilio"]:
        most = max(most, await post.watch(ahead=LEASE / 4))
    while await post.outbox_count():
        assert await post.watch(ahead=LEASE / 4) <= 5

    statuses = {(await post.deliveries(one))[0].status for one in sent}
    charged = sum([not (await post.deliveries(one))[0].refunded for one in sent])
    assert (most, statuses <= {SENT, FAILED}) == (5, True)
    assert charged == sum(call.provider == "twilio" for call in windows.sandbox.received) - 120
    assert await post.credits() == 300 - 3 * charged


async def test_one_organizations_backlog_leaves_room_for_another(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(queue=10, closed=True)
    for organization_id in ("busy", "quiet"):
        await post.fund(100, organization_id)
    for _ in range(30):
        await post.send(EMAIL, organization_id="busy")
    quiet = await post.send(EMAIL, organization_id="quiet")

    await post.watch(ahead=LEASE)

    assert (await post.deliveries(quiet))[0].status is SENT
    assert len(windows.relay.mails) == 6
