"""Sends on a real database: each is charged once and never more than the balance, also under concurrent calls."""

import asyncio
from collections import Counter
from datetime import timedelta
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from server.credits.alerts import update_alerts
from server.errors import (
    DeadlineExceeded,
    DestinationUnreadable,
    InsufficientCredits,
    OtpAlreadyVerified,
    OtpCanceled,
    OtpNotFound,
    RequestIdReused,
    ResendTooSoon,
    WrongCode,
)
from server.otps.admission import SendLimits
from server.otps.crypto import KEY_BYTES, Crypto
from server.otps.otp import cancel_otp
from server.otps.recipients import RawDestination
from server.otps.send import Accepted
from server.postgres.batcher import Shards
from server.postgres.pool import Pool, acquire, transaction
from server.providers.provider import Channel
from tests.integration.otps.backends import wait_for_blocked_backend
from tests.integration.otps.replica import (
    CRYPTO,
    ManualClock,
    Replica,
    count_rows,
    fund,
    ledger,
    spent,
    stored,
    wrong,
)
from tests.shards import ShardOfEach
from tests.waiting import until


async def test_an_accepted_send_is_charged_recorded_and_dispatched(replica: Replica) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send("+6281234567890", channel=Channel.SMS)
    assert (sent.delivery.credits, sent.delivery.balance_after, sent.delivery.ledger_sequence) == (3, 7, 2)
    entry = (await ledger(replica.pool))[-1]
    assert (entry.kind, entry.credits, entry.balance_after) == ("SEND", -3, 7)
    assert entry.reference_id == sent.delivery.delivery_id
    assert [one.delivery for one in replica.accepted] == [sent.delivery]
    assert await stored(replica.pool, sent.record.otp) == sent.record
    assert await count_rows(replica.pool, "outbox") == 1


async def test_fifty_equal_concurrent_sends_are_one(replica: Replica, other_replica: Replica) -> None:
    await fund(replica.pool, 100)
    request_id = uuid4()
    replicas = [replica, other_replica] * 25
    answers = await asyncio.gather(*(one.send("bob@example.com", request_id=request_id) for one in replicas))
    assert len({(one.delivery.delivery_id, one.delivery.balance_after, one.record.otp.otp_id) for one in answers}) == 1
    assert Counter(answer.replayed for answer in answers) == {False: 1, True: 49}
    assert await spent(replica.pool) == [1]
    assert len(replica.accepted + other_replica.accepted) == 1


async def test_a_repeat_is_answered_as_the_first_call_was(replica: Replica) -> None:
    await fund(replica.pool, 100)
    request_id = uuid4()
    first = await replica.send("bob@example.com", request_id=request_id)
    await replica.send()
    again = await replica.send("bob@example.com", request_id=request_id)
    assert again == Accepted(first.record, first.delivery, low_balance=False, replayed=True)


async def test_a_request_id_with_other_arguments_is_refused_and_changes_nothing(replica: Replica) -> None:
    await fund(replica.pool, 100)
    request_id = uuid4()
    await replica.send(request_id=request_id, purpose="login")
    with pytest.raises(RequestIdReused):
        await replica.send(request_id=request_id, purpose="payment")
    assert await spent(replica.pool) == [1]
    assert await count_rows(replica.pool, "otps") == 1


async def test_two_hundred_concurrent_callers_get_exactly_the_ten_credits_of_the_account(
    replica: Replica, other_replica: Replica
) -> None:
    await fund(replica.pool, 10)
    answers = await asyncio.gather(*(one.send() for one in [replica, other_replica] * 100), return_exceptions=True)
    assert Counter(type(answer) for answer in answers) == {Accepted: 10, InsufficientCredits: 190}
    assert await spent(replica.pool) == [1] * 10
    assert (await ledger(replica.pool))[-1].balance_after == 0
    assert await count_rows(replica.pool, "deliveries") == 10


async def test_an_organization_without_an_account_is_refused(replica: Replica) -> None:
    with pytest.raises(InsufficientCredits):
        await replica.send()
    assert await count_rows(replica.pool, "accounts") == 0


@pytest.mark.parametrize("shards", [None, ShardOfEach()], ids=["the pool's shards", "a shard of each"])
async def test_concurrent_sends_of_many_organizations_are_charged_to_each(pool: Pool, shards: Shards | None) -> None:
    replica = Replica(pool, shards=shards)
    names = [f"organization-{number}" for number in range(20)]
    for number, name in enumerate(names[1:], start=1):
        await fund(pool, number, organization_id=name)
    answers = await asyncio.gather(
        *(replica.send(organization_id=name) for _ in range(3) for name in names), return_exceptions=True
    )
    accepted = Counter(one.delivery.organization_id for one in answers if isinstance(one, Accepted))
    assert accepted == {name: min(number, 3) for number, name in enumerate(names) if number}
    for name in names:
        entries = await ledger(pool, name)
        assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
        assert await spent(pool, name) == [1] * accepted[name]


async def test_a_resend_is_charged_has_the_same_code_and_keeps_the_attempts(replica: Replica) -> None:
    await fund(replica.pool, 10)
    sent = await replica.send("bob@example.com")
    otp = sent.record.otp
    with pytest.raises(WrongCode):
        await replica.verify(otp, wrong(otp))
    again = await replica.resend(otp)
    by_sms = await replica.resend(otp, destination=RawDestination(Channel.SMS, "+6281234567890", "destination"))
    assert [CRYPTO.code_of(one.send) for one in replica.accepted] == [CRYPTO.code_of(otp)] * 3
    assert [one.send.recipient.destination for one in replica.accepted] == [
        "bob@example.com",
        "bob@example.com",
        "+6281234567890",
    ]
    assert await spent(replica.pool) == [1, 1, 3]
    record = await stored(replica.pool, otp)
    assert record.deliveries == [sent.delivery, again.delivery, by_sms.delivery] == list(by_sms.record.deliveries)
    assert record.otp.attempts == by_sms.record.otp.attempts == 1


async def test_a_resend_to_a_destination_that_no_key_decrypts_is_refused_unless_it_is_given(pool: Pool) -> None:
    first, both = (
        Crypto({key_id: key_id[:1].encode() * KEY_BYTES for key_id in ring}, digest_secrets={"d1": b"d" * KEY_BYTES})
        for ring in (["1st"], ["1st", "2nd"])
    )
    await fund(pool, 10)
    otp = (await Replica(pool, crypto=first).send()).record.otp
    await Replica(pool, crypto=both).resend(otp)  # sealed with the second key
    replica = Replica(pool, crypto=first)
    before = await ledger(pool)
    with capture_logs() as lines, pytest.raises(DestinationUnreadable):
        await replica.resend(otp)

    assert [line["event"] for line in lines] == ["no key decrypts a delivery's destination"]
    assert await ledger(pool) == before
    again = await replica.resend(otp, destination=RawDestination(Channel.EMAIL, "bob@example.com", "destination"))
    assert again.delivery.masked_destination.endswith("@example.com")
    await replica.verify(otp, first.code_of(otp))


async def test_a_repeated_resend_is_one(replica: Replica) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send()).record.otp
    request_id = uuid4()
    first, *others = await asyncio.gather(*(replica.resend(otp, request_id=request_id) for _ in range(10)))
    assert {one.delivery.delivery_id for one in others} == {first.delivery.delivery_id}
    assert await spent(replica.pool) == [1, 1]


async def test_a_closed_otp_is_not_sent_again(replica: Replica) -> None:
    await fund(replica.pool, 10)
    verified, canceled = (await replica.send()).record.otp, (await replica.send()).record.otp
    await replica.verify(verified)
    async with acquire(replica.pool) as connection:
        await cancel_otp(connection, "acme", canceled.otp_id, now=canceled.create_time)
    with pytest.raises(OtpAlreadyVerified):
        await replica.resend(verified)
    with pytest.raises(OtpCanceled):
        await replica.resend(canceled)
    assert await spent(replica.pool) == [1, 1]


async def test_another_organizations_otp_is_not_found(replica: Replica) -> None:
    await fund(replica.pool, 10)
    await fund(replica.pool, 10, organization_id="other")
    otp = (await replica.send()).record.otp
    otp.organization_id = "other"
    with pytest.raises(OtpNotFound):
        await replica.resend(otp)


async def test_a_resend_of_an_otp_that_was_removed_meanwhile_fails_alone(replica: Replica) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send("bob@example.com")).record.otp
    ids, rename = (
        [uuid4(), otp.otp_id],
        "UPDATE otps SET otp_id = %s WHERE organization_id = 'acme' AND otp_id = %s",
    )
    async with transaction(replica.pool) as holder:
        await holder.execute("SELECT FROM accounts WHERE organization_id = 'acme' FOR UPDATE")
        first = asyncio.create_task(replica.send())
        await wait_for_blocked_backend(replica.pool)
        # Both read the OTP, and are decided together after the first.
        others = [asyncio.create_task(replica.resend(otp)), asyncio.create_task(replica.send())]
        await until(lambda: replica.sender.waiting_count == 2)
        await holder.execute(rename, ids)
    answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Accepted, OtpNotFound, Accepted]
    async with transaction(replica.pool) as connection:  # the audit misses the OTP of a delivery that stays
        await connection.execute(rename, ids[::-1])


async def test_a_deadline_that_passes_while_the_account_is_locked_is_not_charged(pool: Pool) -> None:
    clock = ManualClock()
    replica = Replica(pool, clock=clock)
    await fund(pool, 10)
    async with transaction(pool) as holder:
        await holder.execute("SELECT FROM accounts WHERE organization_id = 'acme' FOR UPDATE")
        late = asyncio.create_task(replica.send(deadline=clock.now + timedelta(seconds=1)))
        await wait_for_blocked_backend(pool)
        clock.advance(seconds=1)
    with pytest.raises(DeadlineExceeded):
        await late
    assert await spent(pool) == []


async def test_the_billing_contact_gets_one_notice_each_time_the_balance_becomes_low(replica: Replica) -> None:
    pool = replica.pool
    await fund(pool, 12, low_balance_threshold=10)
    await update_alerts(
        pool,
        "acme",
        low_balance_threshold=None,
        alert_email="billing@example.com",
        default_threshold=10,
        now=ManualClock().now,
    )
    before = [(await replica.send()).low_balance for _ in range(2)]
    assert await count_rows(pool, "notices") == 0
    after = await asyncio.gather(*(replica.send() for _ in range(5)))
    assert (before, {one.low_balance for one in after}) == ([False, False], {True})
    assert await count_rows(pool, "notices") == 1
    await fund(pool, 10)
    await asyncio.gather(*(replica.send() for _ in range(8)))
    assert await count_rows(pool, "notices") == 2


async def test_a_refused_send_writes_nothing(pool: Pool) -> None:
    replica = Replica(pool, limits=SendLimits(cooldown=timedelta(minutes=1)))
    await fund(pool, 10)
    await replica.send("bob@example.com")
    tables = ("otps", "deliveries", "outbox", "ledger_entries")
    before = [await count_rows(pool, table) for table in tables]
    with pytest.raises(ResendTooSoon):
        await replica.send("bob@example.com")
    assert [await count_rows(pool, table) for table in tables] == before
    assert len(replica.accepted) == 1
