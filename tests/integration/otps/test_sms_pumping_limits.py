"""Limits of unverified credits: exact under concurrent calls, and without effect on e-mail."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest

from server.errors import DestinationBlocked, TooManySends, WrongCode
from server.ids import new_id
from server.otps.delivery.outcome_policy import DeliveryResult
from server.otps.delivery.outcomes import Fallbacks, Outcomes
from server.otps.delivery.reports import report_delivery
from server.otps.otp import DeliveryStatus
from server.otps.recipients import Fallback, RawDestination, RecipientResolver
from server.otps.send import Accepted
from server.otps.sms_pumping import AreaPolicy, queue_read_unverified
from server.postgres.batcher import Batching
from server.postgres.pool import Pool, acquire
from server.providers.provider import Channel, Outcome, OutcomeKind
from tests.integration.otps.replica import (
    CRYPTO,
    LEASE,
    NO_LIMITS,
    PRICES,
    ManualClock,
    Replica,
    fund,
    ledger,
    spent,
    wrong,
)
from tests.unit.otps.sends import a_send

SMS, WHATSAPP = Channel.SMS, Channel.WHATSAPP
PER_COUNTRY, PER_PREFIX = "country", "prefix"
TEN_MESSAGES = {
    PER_COUNTRY: replace(NO_LIMITS, unverified_credits_per_country=30),
    PER_PREFIX: replace(NO_LIMITS, unverified_credits_per_prefix=30),
}
PREFIXES = AreaPolicy(prefix_digits=5)
ACCEPTED, REJECTED = OutcomeKind.ACCEPTED, OutcomeKind.REJECTED_DESTINATION


@pytest.fixture(params=TEN_MESSAGES)
def budget(request: pytest.FixtureRequest) -> str:
    """Which limit is on."""
    return str(request.param)


def phone(number: int) -> str:
    return f"+62812{number:08d}"


def replica_with(pool: Pool, budget: str, *, clock: ManualClock | None = None) -> Replica:
    return Replica(pool, limits=TEN_MESSAGES[budget], areas=PREFIXES, clock=clock or ManualClock())


async def replica_at_limit(pool: Pool, budget: str) -> tuple[Replica, list[Accepted]]:
    """A replica that has spent all that the limit allows, and its sends."""
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
    """The unverified credits that are counted: of all countries, and of all prefixes."""
    query = "SELECT sum(credits)::bigint FROM unverified_credits WHERE (length(area) = 2) = %s"
    async with acquire(pool) as connection:
        rows = [await (await connection.execute(query, [country])).fetchone() for country in (True, False)]
    return [int(row[0] or 0) if row else 0 for row in rows]


async def unverified(pool: Pool) -> int:
    """The unverified credits, by the deliveries."""
    async with acquire(pool) as connection:
        rows = await connection.execute(
            "SELECT sum(delivery.credits)::bigint FROM deliveries AS delivery JOIN otps USING (organization_id, otp_id)"
            " WHERE areas <> '' AND NOT refunded AND otps.status <> 'VERIFIED'"
        )
        row = await rows.fetchone()
    return int(row[0] or 0) if row else 0


async def test_64_callers_on_two_replicas_spend_exactly_the_limit(pool: Pool, other_pool: Pool, budget: str) -> None:
    clock = ManualClock()
    replicas = [replica_with(pool, budget, clock=clock), replica_with(other_pool, budget, clock=clock)]
    await fund(pool, 1000)
    answers = await asyncio.gather(
        *(replicas[number % 2].send(phone(number), channel=SMS) for number in range(64)), return_exceptions=True
    )

    assert Counter(map(type, answers)) == {Accepted: 10, TooManySends: 54}
    assert sum(await spent(pool)) == 30
    assert {error.limit for error in answers if isinstance(error, TooManySends)} == {budget}


async def test_email_and_other_countries_are_not_limited(pool: Pool, budget: str) -> None:
    replica, _ = await replica_at_limit(pool, budget)
    await replica.send()
    await replica.send("+6581234567", channel=WHATSAPP)

    assert (await spent(pool))[-2:] == [1, 2]


async def test_a_prefix_at_its_limit_does_not_limit_the_rest_of_its_country(pool: Pool) -> None:
    replica, _ = await replica_at_limit(pool, PER_PREFIX)
    await replica.send("+6281312345678", channel=SMS)

    assert (await spent(pool))[-1] == 3


async def test_each_verified_code_allows_one_more_send_and_a_wrong_guess_does_not(pool: Pool, budget: str) -> None:
    replica, sends = await replica_at_limit(pool, budget)
    for send in sends:
        await replica.record_outcome(send, ACCEPTED)
    otp, request_id = sends[0].record.otp, new_id()
    with pytest.raises(WrongCode):
        await replica.verify(otp, wrong(otp))
    before = await fits(replica)
    for _ in range(2):  # the second is a repeat
        await replica.verify(otp, request_id=request_id)

    assert (before, await fits(replica, 98), await fits(replica, 97)) == (False, True, False)


async def test_each_failed_message_allows_one_more_send(pool: Pool, budget: str) -> None:
    replica, sends = await replica_at_limit(pool, budget)
    for _ in range(2):  # the second is a repeat
        await replica.record_outcome(sends[0], REJECTED)

    assert (await fits(replica, 98), await fits(replica, 97)) == (True, False)


async def report_failure(replica: Replica, send: Accepted, *, refund_accepted: bool) -> None:
    await report_delivery(
        replica.pool,
        "acme",
        send.delivery.delivery_id,
        status=DeliveryStatus.FAILED,
        failure_reason="absent",
        refund_accepted=refund_accepted,
        now=replica.clock(),
    )


@pytest.mark.parametrize("refund_accepted", [True, False])
@pytest.mark.parametrize("outcome", [ACCEPTED, OutcomeKind.UNKNOWN, REJECTED])
async def test_outcome_report_and_verification_lower_the_count_once_in_every_order(
    pool: Pool, outcome: OutcomeKind, *, refund_accepted: bool
) -> None:
    replica = replica_with(pool, PER_PREFIX, clock=ManualClock())
    await fund(pool, 1000)
    await replica.send(phone(0), channel=SMS)  # stays counted: a second subtraction would show
    for order in permutations(["outcome", "report", "verification"]):
        send = await replica.send(phone(1), channel=SMS)
        for event in order:
            match event:
                case "outcome":
                    await replica.record_outcome(send, outcome)
                case "report":
                    await report_failure(replica, send, refund_accepted=refund_accepted)
                case _:
                    await replica.verify(send.record.otp)
            assert await counted(pool) == [await unverified(pool)] * 2, (order, event)
        assert await counted(pool) == [3, 3], order


async def test_a_reported_failure_that_is_not_refunded_counts_until_its_code_is_verified(pool: Pool) -> None:
    replica = replica_with(pool, PER_PREFIX)
    await fund(pool, 1000)
    send = await replica.send(phone(1), channel=SMS)
    await replica.record_outcome(send, ACCEPTED)
    await report_failure(replica, send, refund_accepted=False)
    before = await counted(pool)
    await replica.verify(send.record.otp)

    assert (before, await counted(pool)) == ([3, 3], [0, 0])


async def test_a_resend_of_an_otp_whose_delivery_was_reported_as_failed_is_lowered_too(pool: Pool) -> None:
    replica = replica_with(pool, PER_PREFIX)
    await fund(pool, 1000)
    send = await replica.send(phone(1), channel=SMS)
    await replica.record_outcome(send, OutcomeKind.UNKNOWN)
    await report_failure(replica, send, refund_accepted=False)
    after_the_refund = await counted(pool)
    await replica.record_outcome(await replica.resend(send.record.otp), ACCEPTED)
    before = await counted(pool)
    await replica.verify(send.record.otp)

    assert (after_the_refund, before, await counted(pool)) == ([0, 0], [3, 3], [0, 0])


async def test_verifying_a_send_of_the_last_window_does_not_lower_the_count_of_this_one(pool: Pool) -> None:
    clock = ManualClock()
    replica = replica_with(pool, PER_PREFIX, clock=clock)
    await fund(pool, 1000)
    late = await replica.send(phone(1), channel=SMS)
    await replica.record_outcome(late, ACCEPTED)
    clock.advance(hours=23, minutes=58)
    last = await replica.send(phone(2), channel=SMS)
    await replica.record_outcome(last, ACCEPTED)
    clock.advance(minutes=2)
    now = await replica.send(phone(3), channel=SMS)
    await replica.record_outcome(now, ACCEPTED)
    await replica.verify(last.record.otp)
    after_the_last = await counted(pool)
    await replica.verify(now.record.otp)

    assert (after_the_last, await counted(pool)) == ([3, 3], [0, 0])


async def test_an_email_otp_that_is_resent_by_text_message_counts_until_it_is_verified(pool: Pool) -> None:
    replica = replica_with(pool, PER_PREFIX)
    await fund(pool, 1000)
    otp = (await replica.send()).record.otp
    again = await replica.resend(otp, destination=RawDestination(SMS, phone(1), "destination"))
    await replica.record_outcome(again, ACCEPTED)
    before = await counted(pool)
    await replica.verify(otp)

    assert (before, await counted(pool)) == ([3, 3], [0, 0])


async def test_concurrent_sends_and_verifications_are_counted_exactly(pool: Pool, other_pool: Pool) -> None:
    clock = ManualClock()
    replicas = [Replica(one, limits=NO_LIMITS, areas=PREFIXES, clock=clock) for one in (pool, other_pool)]
    for name in ("acme", "other"):
        await fund(pool, 1000, organization_id=name)

    async def send_and_verify(number: int) -> None:
        replica, other = replicas if number % 2 else reversed(replicas)
        name = "acme" if number % 3 else "other"
        to = "+6581234567" if number % 5 == 0 else phone(number)
        send = await replica.send(to, channel=SMS, organization_id=name)
        await replica.record_outcome(send, REJECTED if number % 4 == 0 else ACCEPTED)
        if number % 4 == 1:
            await other.verify(send.record.otp)

    await asyncio.gather(*(send_and_verify(number) for number in range(80)))

    assert await counted(pool) == [await unverified(pool)] * 2 == [40 * 3] * 2


async def test_what_happens_to_one_otp_at_the_same_time_is_counted_once(pool: Pool, other_pool: Pool) -> None:
    replicas = [Replica(one, limits=NO_LIMITS, areas=PREFIXES) for one in (pool, other_pool)]
    await fund(pool, 10_000)
    for number in range(100, 140):  # these stay counted: a second subtraction would show
        await replicas[0].send(phone(number), channel=SMS)

    async def at_once(number: int) -> None:
        first, second = replicas if number % 2 else reversed(replicas)
        send = await first.send(phone(number), channel=SMS)
        if number % 3 == 0:
            await first.record_outcome(send, OutcomeKind.UNKNOWN)
        await asyncio.gather(
            first.record_outcome(send, (REJECTED, ACCEPTED)[number % 2]),
            report_failure(second, send, refund_accepted=number % 4 < 2),
            second.verify(send.record.otp),
            first.resend(send.record.otp),
            return_exceptions=True,  # the resend is refused when it is late
        )

    for begin in range(0, 96, 12):
        await asyncio.gather(*(at_once(number) for number in range(begin, begin + 12)))

    assert await counted(pool) == [await unverified(pool)] * 2 == [40 * 3] * 2


async def test_a_blocked_destination_is_refused_before_it_is_charged(pool: Pool, replica: Replica) -> None:
    await fund(pool, 1000)
    mailed, texted = await replica.send(), await replica.send(phone(1), channel=SMS)
    before = await ledger(pool)
    strict = Replica(pool, areas=AreaPolicy(allowed=("SG",)))

    for refused in (
        strict.send(phone(2), channel=SMS),
        strict.send(phone(2), channel=WHATSAPP),
        strict.resend(texted.record.otp),
        strict.resend(mailed.record.otp, destination=RawDestination(SMS, phone(2), "destination")),
    ):
        with pytest.raises(DestinationBlocked):
            await refused
    assert await ledger(pool) == before
    await strict.send("+6581234567", channel=SMS)


async def test_a_fallback_that_is_blocked_or_invalid_by_now_is_skipped(pool: Pool, replica: Replica) -> None:
    await fund(pool, 1000)
    fallbacks = [
        Fallback(SMS, phone(1)),
        Fallback(SMS, "+880641234567"),  # was valid with PULSA_LIMIT_EXTRA_PREFIXES
        Fallback(Channel.EMAIL, "bob@example.com"),
    ]
    job = replica.job(await replica.send())
    sealed = RecipientResolver(CRYPTO, PRICES).seal_fallbacks("acme", fallbacks)
    job.admitted = job.admitted._replace(send=job.send._replace(fallbacks_sealed=sealed))
    blocking = RecipientResolver(CRYPTO, PRICES, AreaPolicy(blocked=("+62812",)))
    outcomes = Outcomes(
        pool, batching=Batching(), lease=LEASE, clock=replica.clock, fallbacks=Fallbacks(blocking, NO_LIMITS)
    )
    fallbacks_sent = await outcomes.record([DeliveryResult(job, Outcome(REJECTED, "console"))])

    assert [one.send.recipient.channel for one in fallbacks_sent] == [Channel.EMAIL]


async def test_without_a_limit_for_prefixes_nothing_is_stored_for_them(pool: Pool, replica: Replica) -> None:
    await fund(pool, 10)
    await replica.send(phone(1), channel=SMS)

    assert await counted(pool) == [3, 0]


async def test_a_batch_without_phones_reads_no_unverified_credits(pool: Pool) -> None:
    async with acquire(pool) as connection:
        assert await queue_read_unverified(connection, [a_send(), a_send()]) is None


async def test_a_window_begins_with_its_first_send(pool: Pool, budget: str) -> None:
    clock = ManualClock()
    replica = replica_with(pool, budget, clock=clock)
    await fund(pool, 1000)
    for number in range(10):
        await replica.send(phone(number), channel=SMS)
        clock.advance(minutes=1)
    clock.now += timedelta(hours=24) - timedelta(minutes=10, microseconds=1)
    before = await fits(replica)
    clock.now += timedelta(microseconds=1)

    assert (before, await fits(replica)) == (False, True)
