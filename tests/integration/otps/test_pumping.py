"""The most that SMS pumping can cost is what the settings say, whoever calls at once; mail knows nothing of it."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from server.channels.channel import ChannelName, OutcomeKind
from server.database.batcher import Batching
from server.database.pool import Pool, connection
from server.errors import DestinationBlocked, TooManySends, WrongCode
from server.ids import new_id
from server.otps.orders import Accepted, Orders
from server.otps.pumping import Served, request_unverified
from server.otps.targets import Address, Targets
from tests.integration.otps.replica import NO_LIMITS, PRICES, VAULT, HandClock, Replica, fund, ledger, spent, wrong
from tests.unit.otps.books import a_send

SMS, WHATSAPP = ChannelName.SMS, ChannelName.WHATSAPP
PER_COUNTRY, PER_PREFIX = "unverified_credits_per_country", "unverified_credits_per_prefix"
TEN_MESSAGES = {
    PER_COUNTRY: replace(NO_LIMITS, unverified_credits_per_country=30),
    PER_PREFIX: replace(NO_LIMITS, unverified_credits_per_prefix=30),
}
PREFIXES = Served(prefix_digits=5)
ACCEPTED, REJECTED = OutcomeKind.ACCEPTED, OutcomeKind.REJECTED_DESTINATION


@pytest.fixture(params=TEN_MESSAGES)
def budget(request: pytest.FixtureRequest) -> str:
    """Which limit is on."""
    return str(request.param)


def phone(number: int) -> str:
    return f"+62812{number:08d}"


def replica_with(pool: Pool, budget: str, *, clock: HandClock | None = None) -> Replica:
    return Replica(pool, limits=TEN_MESSAGES[budget], served=PREFIXES, clock=clock or HandClock())


async def filled(pool: Pool, budget: str) -> tuple[Replica, list[Accepted]]:
    """A replica that has spent all that it may."""
    replica = replica_with(pool, budget)
    await fund(pool, 1000)
    sends = [await replica.send(phone(number), channel=SMS) for number in range(10)]
    with pytest.raises(TooManySends):
        await replica.send(phone(99), channel=SMS)
    return replica, sends


async def fits(replica: Replica, number: int = 99) -> bool:
    try:
        await replica.send(phone(number), channel=SMS)
    except TooManySends:
        return False
    return True


async def counted(pool: Pool) -> list[int]:
    """In all countries, and in all prefixes."""
    query = "SELECT sum(credits)::bigint FROM unverified_credits WHERE (length(area) = 2) = %s"
    async with connection(pool) as lent:
        rows = [await (await lent.execute(query, [country])).fetchone() for country in (True, False)]
    return [int(row[0] or 0) if row else 0 for row in rows]


async def unverified(pool: Pool) -> int:
    """As the deliveries tell it."""
    async with connection(pool) as lent:
        rows = await lent.execute(
            "SELECT sum(delivery.credits)::bigint FROM deliveries AS delivery JOIN otps USING (organization_id, otp_id)"
            " WHERE areas <> '' AND delivery.status <> 'FAILED' AND otps.status <> 'VERIFIED'"
        )
        row = await rows.fetchone()
    return int(row[0] or 0) if row else 0


async def test_64_callers_on_two_replicas_spend_exactly_what_is_allowed(
    pool: Pool, other_pool: Pool, budget: str
) -> None:
    clock = HandClock()
    replicas = [replica_with(pool, budget, clock=clock), replica_with(other_pool, budget, clock=clock)]
    await fund(pool, 1000)
    answers = await asyncio.gather(
        *(replicas[number % 2].send(phone(number), channel=SMS) for number in range(64)), return_exceptions=True
    )

    assert Counter(map(type, answers)) == {Accepted: 10, TooManySends: 54}
    assert sum(await spent(pool)) == 30
    assert {error.limit for error in answers if isinstance(error, TooManySends)} == {budget}


async def test_mail_and_other_countries_go_on(pool: Pool, budget: str) -> None:
    replica, _ = await filled(pool, budget)
    await replica.send()
    await replica.send("+6581234567", channel=WHATSAPP)

    assert (await spent(pool))[-2:] == [1, 2]


async def test_a_full_prefix_leaves_its_country_open(pool: Pool) -> None:
    replica, _ = await filled(pool, PER_PREFIX)
    await replica.send("+6281312345678", channel=SMS)

    assert (await spent(pool))[-1] == 3


async def test_each_verified_code_makes_room_for_another_and_a_wrong_one_does_not(pool: Pool, budget: str) -> None:
    replica, sends = await filled(pool, budget)
    for send in sends:
        await replica.report(send, ACCEPTED)
    otp, request_id = sends[0].record.otp, new_id()
    with pytest.raises(WrongCode):
        await replica.verify(otp, wrong(otp))
    before = await fits(replica)
    for _ in range(2):  # the second is a repeat
        await replica.verify(otp, request_id=request_id)

    assert (before, await fits(replica, 98), await fits(replica, 97)) == (False, True, False)


async def test_a_message_that_failed_makes_room_for_another(pool: Pool, budget: str) -> None:
    replica, sends = await filled(pool, budget)
    for _ in range(2):  # the second is a repeat
        await replica.report(sends[0], REJECTED)

    assert (await fits(replica, 98), await fits(replica, 97)) == (True, False)


async def test_what_was_sent_in_the_last_window_makes_no_room_in_this_one(pool: Pool) -> None:
    clock = HandClock()
    replica = replica_with(pool, PER_PREFIX, clock=clock)
    await fund(pool, 1000)
    late = await replica.send(phone(1), channel=SMS)
    await replica.report(late, ACCEPTED)
    clock.advance(hours=23, minutes=58)
    last = await replica.send(phone(2), channel=SMS)
    await replica.report(last, ACCEPTED)
    clock.advance(minutes=2)
    now = await replica.send(phone(3), channel=SMS)
    await replica.report(now, ACCEPTED)
    await replica.verify(last.record.otp)
    after_the_last = await counted(pool)
    await replica.verify(now.record.otp)

    assert (after_the_last, await counted(pool)) == ([3, 3], [0, 0])


async def test_a_mail_that_is_sent_again_by_text_message_counts_until_it_is_verified(pool: Pool) -> None:
    replica = replica_with(pool, PER_PREFIX)
    await fund(pool, 1000)
    otp = (await replica.send()).record.otp
    again = await replica.resend(otp, address=Address(SMS, phone(1), "destination"))
    await replica.report(again, ACCEPTED)
    before = await counted(pool)
    await replica.verify(otp)

    assert (before, await counted(pool)) == ([3, 3], [0, 0])


async def test_sends_and_codes_at_once_are_counted_exactly(pool: Pool, other_pool: Pool) -> None:
    clock = HandClock()
    replicas = [Replica(one, limits=NO_LIMITS, served=PREFIXES, clock=clock) for one in (pool, other_pool)]
    for name in ("acme", "other"):
        await fund(pool, 1000, organization_id=name)

    async def live(number: int) -> None:
        replica, other = replicas if number % 2 else reversed(replicas)
        name = "acme" if number % 3 else "other"
        to = "+6581234567" if number % 5 == 0 else phone(number)
        send = await replica.send(to, channel=SMS, organization_id=name)
        await replica.report(send, REJECTED if number % 4 == 0 else ACCEPTED)
        if number % 4 == 1:
            await other.verify(send.record.otp)

    await asyncio.gather(*(live(number) for number in range(80)))

    assert await counted(pool) == [await unverified(pool)] * 2 == [40 * 3] * 2


async def test_a_blocked_destination_is_refused_before_it_is_charged(pool: Pool, replica: Replica) -> None:
    await fund(pool, 1000)
    mailed, texted = await replica.send(), await replica.send(phone(1), channel=SMS)
    before = await ledger(pool)
    replica.orders = Orders(
        pool,
        VAULT,
        replica.sender,
        channel_credits=PRICES,
        batching=Batching(),
        served=Served(areas=("SG",)),
        clock=replica.clock,
    )

    for refused in (
        replica.send(phone(2), channel=SMS),
        replica.send(phone(2), channel=WHATSAPP),
        replica.resend(texted.record.otp),
        replica.resend(mailed.record.otp, address=Address(SMS, phone(2), "destination")),
    ):
        with pytest.raises(DestinationBlocked):
            await refused
    assert await ledger(pool) == before
    await replica.send("+6581234567", channel=SMS)


async def test_a_fallback_that_is_blocked_by_now_is_passed_over(pool: Pool, replica: Replica) -> None:
    await fund(pool, 1000)
    fallbacks = [Address(SMS, phone(1), "fallbacks"), Address(ChannelName.EMAIL, "bob@example.com", "fallbacks")]
    errand = replace(
        replica.errand(await replica.send()),
        fallbacks_sealed=Targets(VAULT, PRICES).seal_fallbacks("acme", fallbacks),
    )
    left = list(Targets(VAULT, PRICES, Served(blocked=("+62812",))).alternatives(errand))

    assert [send.target.channel for send in left] == [ChannelName.EMAIL]


async def test_without_a_limit_for_prefixes_nothing_is_stored_for_them(pool: Pool, replica: Replica) -> None:
    await fund(pool, 10)
    await replica.send(phone(1), channel=SMS)

    assert await counted(pool) == [3, 0]


async def test_a_flush_without_phones_asks_nothing_about_countries(pool: Pool) -> None:
    async with connection(pool) as lent:
        assert await request_unverified(lent, [a_send(), a_send()]) is None


async def test_a_window_begins_with_its_first_send(pool: Pool, budget: str) -> None:
    clock = HandClock()
    replica = replica_with(pool, budget, clock=clock)
    await fund(pool, 1000)
    for number in range(10):
        await replica.send(phone(number), channel=SMS)
        clock.advance(minutes=1)
    clock.now += timedelta(hours=24) - timedelta(minutes=10, microseconds=1)
    before = await fits(replica)
    clock.now += timedelta(microseconds=1)

    assert (before, await fits(replica)) == (False, True)
