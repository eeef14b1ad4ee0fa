"""What a crash leaves is taken over by the night watch, of this process or another."""

import asyncio

from server.database.pool import Pool
from server.otps.otp import DeliveryStatus
from server.otps.vault import Vault
from server.sandbox.providers import Answer, Conduct
from server.watch.deliveries import watch_deliveries
from tests.integration.deliveries.post import EMAIL, LEASE, SMS, OpenPost, Post, Windows, until

SENT, FAILED = DeliveryStatus.SENT, DeliveryStatus.FAILED


async def test_a_send_that_was_accepted_before_a_crash_goes_out_once_after_it(post: Post, windows: Windows) -> None:
    post.closed = True
    accepted = await post.send(SMS)

    rounds = [await post.watch(ahead=LEASE / 2), await post.watch(ahead=LEASE / 2), await post.watch(ahead=LEASE)]

    (delivery,) = await post.deliveries(accepted)
    assert (rounds, delivery.status) == ([0, 1, 0], SENT)
    assert len(windows.sandbox.received) == 1
    assert await post.ledger() == [("SEND", -3, delivery.delivery_id)]


async def test_a_crash_between_the_provider_and_the_database_repeats_the_same_code(
    post: Post, windows: Windows
) -> None:
    windows.sandbox.play("twilio", Answer(conduct=Conduct.HANG))
    accepted = await post.send(SMS)

    async def is_asked() -> bool:
        return len(windows.sandbox.received) == 1

    await until(is_asked)
    await post.crash()
    await post.watch(ahead=LEASE)

    (delivery,) = await post.deliveries(accepted)
    texts = {call.text for call in windows.sandbox.received}
    assert (delivery.status, len(windows.sandbox.received), len(texts)) == (SENT, 2, 1)
    assert await post.ledger() == [("SEND", -3, delivery.delivery_id)]


async def test_two_replicas_on_watch_send_each_message_once(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(closed=True)
    neighbour = open_post(clock=post.clock)
    await post.fund(100)
    sent = [await post.send(EMAIL) for _ in range(40)]
    post.clock.time += LEASE

    taken = await asyncio.gather(*(one.watch() for one in (post, neighbour, post, neighbour)))

    assert sum(taken) == 40
    assert {(await post.deliveries(one))[0].status for one in sent} == {SENT}
    assert len(windows.relay.mails) == 40


async def test_a_watch_without_room_takes_nothing(open_post: OpenPost) -> None:
    post = open_post(concurrency=0, queue=1, closed=True)
    await post.fund(10)
    await post.send(EMAIL)
    await post.send(EMAIL)
    now = post.clock() + LEASE

    taken = [
        await watch_deliveries(post.pool, post.vault, post.dispatcher, lease=LEASE, now=now, limit=10) for _ in range(2)
    ]

    due = await post.rows("SELECT 1 FROM outbox WHERE next_attempt_time <= %s", now)
    assert (taken, len(due)) == ([1, 0], 1)


async def test_a_message_that_no_key_opens_any_more_is_refunded(open_post: OpenPost) -> None:
    post = open_post(closed=True)
    await post.fund(10)
    accepted = await post.send(EMAIL)
    later = open_post(vault=Vault({"second": b"3" * 32}, digest_secret=b"2" * 32), clock=post.clock)

    await later.watch(ahead=LEASE)

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.status, delivery.refunded, delivery.failure_reason) == (FAILED, True, "key_missing")


async def test_a_channel_that_is_not_configured_any_more_is_refunded(open_post: OpenPost, windows: Windows) -> None:
    post = open_post(closed=True)
    await post.fund(10)
    accepted = await post.send(SMS)
    channels = windows.channels()
    del channels[SMS.channel]
    later = open_post(channels, clock=post.clock)

    await later.watch(ahead=LEASE)

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.refunded, delivery.failure_reason) == (True, "channel_not_configured")


async def test_an_outcome_waits_for_a_database_that_is_away(post: Post, pool: Pool, windows: Windows) -> None:
    windows.sandbox.play("twilio", Answer(201, '{"sid": "SM1"}', conduct=Conduct.HANG))
    accepted = await post.send(SMS)

    async def is_asked() -> bool:
        return len(windows.sandbox.received) == 1

    await until(is_asked)
    lent = [await pool.getconn() for _ in range(pool.max_size)]
    pool.timeout, patience = 0.05, pool.timeout
    windows.sandbox.release()
    await asyncio.sleep(0)

    async def waits() -> bool:
        return pool.get_stats().get("requests_errors", 0) > 0

    await until(waits)
    pool.timeout = patience
    for one in lent:
        await pool.putconn(one)
    await post.idle()

    (delivery,) = await post.deliveries(accepted)
    assert (delivery.status, len(windows.sandbox.received)) == (SENT, 1)
