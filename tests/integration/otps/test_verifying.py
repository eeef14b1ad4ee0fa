"""Guesses on a real database: one OK, every wrong one counted, and a budget that nothing renews."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from server.channels.channel import ChannelName
from server.database.pool import Pool, connection
from server.errors import (
    DomainError,
    OtpAlreadyVerified,
    OtpAttemptsExhausted,
    OtpCanceled,
    OtpExpired,
    OtpNotFound,
    TooManyGuesses,
    WrongCode,
)
from server.otps.guessing import GuessLimits
from server.otps.otp import Otp, OtpStatus
from server.otps.reading import cancel_otp
from server.otps.targets import Address
from tests.integration.otps.replica import VAULT, HandClock, Replica, count_rows, fund, stored, wrong


async def test_the_right_code_is_accepted_and_stays_so(replica: Replica) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send()).record.otp
    request_id = uuid4()
    verified = await replica.verify(otp, request_id=request_id)
    assert verified == replace(
        otp, status=OtpStatus.VERIFIED, verify_time=verified.verify_time, verify_request_id=request_id
    )
    assert (await stored(replica.pool, otp)).otp == verified
    assert await replica.verify(otp, request_id=request_id) == verified
    assert await count_rows(replica.pool, "guess_budgets") == 0


async def test_of_many_right_guesses_at_once_one_gets_the_ok(replica: Replica, other_replica: Replica) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send()).record.otp
    answers = await asyncio.gather(*(one.verify(otp) for one in [replica, other_replica] * 16), return_exceptions=True)
    assert Counter(map(type, answers)) == {Otp: 1, OtpAlreadyVerified: 31}


async def test_wrong_guesses_of_many_callers_are_all_counted(replica: Replica, other_replica: Replica) -> None:
    await fund(replica.pool, 100)
    limits = GuessLimits(wrong_guesses=100, free_guesses=100)
    replicas = [Replica(replica.pool, guess_limits=limits), Replica(other_replica.pool, guess_limits=limits)]
    otps = [(await replica.send("bob@example.com", max_attempts=7)).record.otp for _ in range(8)]
    answers = await asyncio.gather(
        *(replicas[caller % 2].verify(otp, wrong(otp)) for caller in range(8) for otp in otps),
        return_exceptions=True,
    )
    assert Counter(map(type, answers)) == {WrongCode: 56, OtpAttemptsExhausted: 8}
    remaining = Counter(answer.attempts_remaining for answer in answers if isinstance(answer, WrongCode))
    assert remaining == dict.fromkeys(range(7), 8)
    async with connection(replica.pool) as lent:
        rows = await (await lent.execute("SELECT cardinality(wrong_guess_times) FROM guess_budgets")).fetchall()
    assert rows == [(56,)]
    assert {(await stored(replica.pool, otp)).otp.status for otp in otps} == {OtpStatus.ATTEMPTS_EXHAUSTED}


async def test_a_wrong_guess_is_counted_although_the_call_fails(replica: Replica) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send(max_attempts=2)).record.otp
    with pytest.raises(WrongCode) as first:
        await replica.verify(otp, wrong(otp))
    assert first.value.attempts_remaining == 1
    assert (await stored(replica.pool, otp)).otp.attempts == 1
    assert (await replica.verify(otp)).attempts == 1


@pytest.mark.parametrize("context", ["", "IDR 200"])
async def test_a_code_is_not_good_for_another_context(replica: Replica, context: str) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send(context="IDR 100")).record.otp
    elsewhere = replace(otp, context_digest=VAULT.context_digest(context))
    with pytest.raises(WrongCode):
        await replica.verify(otp, context=context)
    with pytest.raises(WrongCode):
        await replica.verify(otp, VAULT.code_of(elsewhere), context=context)
    assert (await replica.verify(otp, context="IDR 100")).status is OtpStatus.VERIFIED


async def test_a_repeat_with_another_code_or_context_gets_no_ok(replica: Replica) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send()).record.otp
    request_id = uuid4()
    await replica.verify(otp, request_id=request_id)
    with pytest.raises(OtpAlreadyVerified):
        await replica.verify(otp, wrong(otp), request_id=request_id)
    with pytest.raises(OtpAlreadyVerified):
        await replica.verify(otp, request_id=request_id, context="IDR 100")


async def test_what_cannot_be_a_code_is_a_wrong_one(replica: Replica) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send(max_attempts=10)).record.otp
    for code in ("", "12345", "1234567", "١٢٣٤٥٦", "ABCDEF", "0" * 16):
        with pytest.raises(WrongCode):
            await replica.verify(otp, code)


async def test_closed_and_unknown_otps_say_what_they_are(pool: Pool) -> None:
    clock = HandClock()
    replica = Replica(pool, clock=clock)
    await fund(pool, 10)
    canceled, expired = [(await replica.send()).record.otp for _ in range(2)]
    async with connection(pool) as lent:
        await cancel_otp(lent, "acme", canceled.otp_id, now=clock.now)
    clock.now = expired.expire_time
    for otp, refusal in (
        (canceled, OtpCanceled),
        (expired, OtpExpired),
        (replace(canceled, organization_id="other"), OtpNotFound),
        (replace(canceled, otp_id=uuid4()), OtpNotFound),
    ):
        for code in (VAULT.code_of(otp), wrong(otp)):
            with pytest.raises(refusal):
                await replica.verify(otp, code)
    assert await count_rows(pool, "guess_budgets") == 0


async def test_an_otp_whose_key_has_left_the_ring_fails_alone(replica: Replica) -> None:
    await fund(replica.pool, 10)
    lost, held, kept = [(await replica.send()).record.otp for _ in range(3)]
    async with connection(replica.pool) as lent:
        await lent.execute("UPDATE otps SET code_key_id = 'gone' WHERE otp_id = %s", [lost.otp_id])
    first = asyncio.create_task(replica.verify(held))
    answers = await asyncio.gather(first, replica.verify(lost), replica.verify(kept), return_exceptions=True)
    assert list(map(type, answers)) == [Otp, WrongCode, Otp]


async def guess_until_told_to_wait(replica: Replica, otp: Otp) -> tuple[int, DomainError]:
    """How many wrong guesses at the OTP were looked at, and what ended them."""
    for guesses in range(otp.max_attempts):
        try:
            await replica.verify(otp, wrong(otp))
        except WrongCode:
            continue
        except DomainError as error:
            return guesses, error
    return otp.max_attempts, OtpAttemptsExhausted()


async def test_a_brute_force_over_resends_new_otps_and_channels_stops_at_the_stated_bound(pool: Pool) -> None:
    clock = HandClock()
    limits = GuessLimits(wrong_guesses=12, free_guesses=3, longest_pause=timedelta(minutes=1))
    replica = Replica(pool, guess_limits=limits, clock=clock)
    await fund(pool, 1000)
    start, looked_at, waits = clock.now, 0, []
    while clock.now < start + limits.window:
        channel = ChannelName.SMS if looked_at % 2 else ChannelName.WHATSAPP
        otp = (await replica.send("+6281234567890", channel=channel, max_attempts=10)).record.otp
        await replica.resend(otp, address=Address(ChannelName.EMAIL, "bob@example.com", "destination"))
        guesses, end = await guess_until_told_to_wait(replica, otp)
        looked_at += guesses
        assert isinstance(end, TooManyGuesses)
        # The right code does not pass either, nor on any other replica.
        with pytest.raises(TooManyGuesses):
            await Replica(pool, guess_limits=limits, clock=clock).verify(otp)
        waits.append(end.retry_after_seconds)
        clock.advance(seconds=end.retry_after_seconds)
    assert looked_at == limits.wrong_guesses
    assert waits[:-1] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert clock.now == start + limits.window
    # Three of the twelve no longer count. After one more the next pause ends as others leave: 15 s later six are left,
    # whose pause is 8 s; 7 s later it was seven, whose pause is 16 s.
    otp = (await replica.send("+6281234567890", channel=ChannelName.SMS)).record.otp
    guesses, end = await guess_until_told_to_wait(replica, otp)
    assert isinstance(end, TooManyGuesses)
    assert (guesses, end.retry_after_seconds) == (1, 15)


async def test_a_pause_ends_at_its_microsecond(pool: Pool) -> None:
    clock = HandClock()
    replica = Replica(pool, guess_limits=GuessLimits(free_guesses=1), clock=clock)
    await fund(pool, 10)
    otp = (await replica.send()).record.otp
    with pytest.raises(WrongCode):
        await replica.verify(otp, wrong(otp))
    clock.advance(seconds=1, microseconds=-1)
    with pytest.raises(TooManyGuesses) as refused:
        await replica.verify(otp)
    assert refused.value.retry_after_seconds == 0.000_001
    clock.advance(microseconds=1)
    assert (await replica.verify(otp)).status is OtpStatus.VERIFIED


async def test_nobody_is_locked_out_by_another_organization(replica: Replica) -> None:
    limits = GuessLimits(wrong_guesses=1)
    victim = Replica(replica.pool, guess_limits=limits)
    for organization_id in ("acme", "other"):
        await fund(replica.pool, 10, organization_id=organization_id)
    theirs = (await replica.send("bob@example.com", organization_id="other")).record.otp
    ours = (await replica.send("bob@example.com")).record.otp
    with pytest.raises(WrongCode):
        await victim.verify(theirs, wrong(theirs))
    with pytest.raises(TooManyGuesses):
        await victim.verify(theirs)
    assert (await victim.verify(ours)).status is OtpStatus.VERIFIED
