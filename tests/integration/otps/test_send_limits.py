"""Limits on sends under concurrent calls on two replicas: exact, not approximate."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from server.errors import ResendTooSoon, RetryLater, TooManySends
from server.otps.admission import SendLimits
from server.otps.send import Accepted
from server.postgres.pool import Pool
from server.providers.provider import Channel
from tests.integration.otps.replica import NO_LIMITS, ManualClock, Replica, fund, spent

CALLERS = 64


@pytest.mark.parametrize(
    ("limits", "destinations", "expected"),
    [
        (replace(NO_LIMITS, cooldown=timedelta(seconds=30)), 1, {Accepted: 1, ResendTooSoon: 63}),
        (replace(NO_LIMITS, sends_per_destination_per_hour=10), 1, {Accepted: 10, TooManySends: 54}),
        (replace(NO_LIMITS, sends_per_destination_per_day=7), 2, {Accepted: 14, TooManySends: 50}),
        (replace(NO_LIMITS, sends_per_organization_per_minute=20), 64, {Accepted: 20, TooManySends: 44}),
    ],
)
async def test_a_limit_accepts_exactly_its_number_of_sends(
    pool: Pool, other_pool: Pool, limits: SendLimits, destinations: int, expected: dict[type, int]
) -> None:
    clock = ManualClock()
    replicas = [Replica(pool, limits=limits, clock=clock), Replica(other_pool, limits=limits, clock=clock)]
    await fund(pool, 1000)
    answers = await asyncio.gather(
        *(replicas[number % 2].send(f"person-{number % destinations}@example.com") for number in range(CALLERS)),
        return_exceptions=True,
    )
    assert Counter(map(type, answers)) == expected
    assert len(await spent(pool)) == expected[Accepted]


@pytest.mark.parametrize(("number", "other"), [("+5491123456789", "+541123456789"), ("+970599123456", "+972599123456")])
async def test_two_forms_of_one_number_share_a_cooldown(pool: Pool, number: str, other: str) -> None:
    replica = Replica(pool, limits=replace(NO_LIMITS, cooldown=timedelta(seconds=30)))
    await fund(pool, 10)
    answers = await asyncio.gather(
        *(replica.send(text, channel=Channel.SMS) for text in (number, other)), return_exceptions=True
    )
    assert Counter(map(type, answers)) == {Accepted: 1, ResendTooSoon: 1}


async def wait_of(replica: Replica) -> timedelta:
    with pytest.raises(RetryLater) as refused:
        await replica.send("bob@example.com")
    return timedelta(seconds=refused.value.retry_after_seconds)


@pytest.mark.parametrize(
    "limits",
    [
        replace(NO_LIMITS, cooldown=timedelta(seconds=30)),
        replace(NO_LIMITS, sends_per_destination_per_hour=1),
        replace(NO_LIMITS, sends_per_destination_per_day=1),
        replace(NO_LIMITS, sends_per_organization_per_minute=1),
        SendLimits(timedelta(seconds=30), 1, 1, 1),
    ],
)
async def test_a_refused_send_is_accepted_after_exactly_its_retry_after_and_not_a_microsecond_before(
    pool: Pool, limits: SendLimits
) -> None:
    clock = ManualClock()
    replica = Replica(pool, limits=limits, clock=clock)
    await fund(pool, 10)
    await replica.send("bob@example.com")
    clock.advance(seconds=7.25)
    clock.now += await wait_of(replica) - timedelta(microseconds=1)
    assert await wait_of(replica) == timedelta(microseconds=1)
    clock.advance(microseconds=1)
    await replica.send("bob@example.com")


async def test_a_number_is_one_destination_on_every_channel_and_in_every_spelling(pool: Pool) -> None:
    replica = Replica(pool, limits=replace(NO_LIMITS, sends_per_destination_per_hour=2))
    await fund(pool, 100)
    await replica.send("+6281234567890", channel=Channel.SMS)
    await replica.send("+62 812-3456-7890", channel=Channel.WHATSAPP)
    with pytest.raises(TooManySends):
        await replica.send("+62 (812) 34567890", channel=Channel.SMS)


async def test_a_resend_waits_for_the_cooldown_of_its_destination(pool: Pool) -> None:
    clock = ManualClock()
    replica = Replica(pool, limits=replace(NO_LIMITS, cooldown=timedelta(seconds=30)), clock=clock)
    await fund(pool, 100)
    otp = (await replica.send()).record.otp
    clock.advance(seconds=29)
    with pytest.raises(ResendTooSoon) as refused:
        await replica.resend(otp)
    assert refused.value.retry_after_seconds == 1
    clock.advance(seconds=1)
    await replica.resend(otp)


async def test_the_sends_of_one_organization_do_not_limit_another(pool: Pool) -> None:
    replica = Replica(pool, limits=SendLimits(timedelta(hours=1), 1, 1, 1))
    for organization_id in ("acme", "other"):
        await fund(pool, 10, organization_id=organization_id)
        await replica.send("bob@example.com", organization_id=organization_id)


async def test_a_repeat_is_not_limited(pool: Pool) -> None:
    replica = Replica(pool, limits=SendLimits(timedelta(hours=1), 1, 1, 1))
    await fund(pool, 10)
    request_id = uuid4()
    answers = [await replica.send("bob@example.com", request_id=request_id) for _ in range(3)]
    assert [answer.replayed for answer in answers] == [False, True, True]
