"""Guesses on a real database: one OK, every wrong guess counted, and a budget that nothing renews."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

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
from server.otps.guess_policy import GuessLimits
from server.otps.otp import Otp, OtpStatus, cancel_otp
from server.otps.recipients import RawDestination
from server.postgres.pool import Pool, acquire
from server.providers.provider import Channel
from tests.integration.otps.replica import CRYPTO, ManualClock, Replica, count_rows, fund, stored, wrong


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


async def test_one_of_many_concurrent_right_guesses_gets_the_ok(replica: Replica, other_replica: Replica) -> None:
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
    async with acquire(replica.pool) as connection:
        rows = await (await connection.execute("SELECT cardinality(wrong_guess_times) FROM guess_budgets")).fetchall()
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
    elsewhere = replace(otp, context_digest=CRYPTO.context_digest(context, otp.code_key_id))
    with pytest.raises(WrongCode):
        await replica.verify(otp, context=context)
    with pytest.raises(WrongCode):
        await replica.verify(otp, CRYPTO.code_of(elsewhere), context=context)
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


async def test_text_that_cannot_be_a_code_is_a_wrong_guess(replica: Replica) -> None:
    await fund(replica.pool, 10)
    otp = (await replica.send(max_attempts=10)).record.otp
    for code in ("", "12345", "1234567", "١٢٣٤٥٦", "ABCDEF", "0" * 16):
        with pytest.raises(WrongCode):
            await replica.verify(otp, code)


async def test_guesses_at_closed_and_unknown_otps_get_their_reason(pool: Pool) -> None:
    clock = ManualClock()
    replica = Replica(pool, clock=clock)
    await fund(pool, 10)
    canceled, expired = [(await replica.send()).record.otp for _ in range(2)]
    async with acquire(pool) as connection:
        await cancel_otp(connection, "acme", canceled.otp_id, now=clock.now)
    clock.now = expired.expire_time
    for otp, refusal in (
        (canceled, OtpCanceled),
        (expired, OtpExpired),
        (replace(canceled, organization_id="other"), OtpNotFound),
        (replace(canceled, otp_id=uuid4()), OtpNotFound),
    ):
        for code in (CRYPTO.code_of(otp), wrong(otp)):
            with pytest.raises(refusal):
                await replica.verify(otp, code)
    assert await count_rows(pool, "guess_budgets") == 0


async def test_a_guess_at_an_otp_whose_key_was_removed_fails_alone(replica: Replica) -> None:
    await fund(replica.pool, 10)
    lost, held, kept = [(await replica.send()).record.otp for _ in range(3)]
    async with acquire(replica.pool) as connection:
        await connection.execute("UPDATE otps SET code_key_id = 'removed' WHERE otp_id = %s", [lost.otp_id])
    first = asyncio.create_task(replica.verify(held))
    answers = await asyncio.gather(first, replica.verify(lost), replica.verify(kept), return_exceptions=True)
    assert list(map(type, answers)) == [Otp, WrongCode, Otp]


async def guess_until_refused(replica: Replica, otp: Otp) -> tuple[int, DomainError]:
    """How many wrong guesses at the OTP were judged, and what ended them."""
    for guesses in range(otp.max_attempts):
        try:
            await replica.verify(otp, wrong(otp))
        except WrongCode:
            continue
        except DomainError as error:
            return guesses, error
    return otp.max_attempts, OtpAttemptsExhausted()


async def test_a_brute_force_over_resends_new_otps_and_channels_stops_at_the_stated_bound(pool: Pool) -> None:
    clock = ManualClock()
    limits = GuessLimits(wrong_guesses=12, free_guesses=3, longest_pause=timedelta(minutes=1))
    replica = Replica(pool, guess_limits=limits, clock=clock)
    await fund(pool, 1000)
    start, judged, waits = clock.now, 0, []
    while clock.now < start + limits.window:
        channel = Channel.SMS if judged % 2 else Channel.WHATSAPP
        otp = (await replica.send("+6281234567890", channel=channel, max_attempts=10)).record.otp
        await replica.resend(otp, destination=RawDestination(Channel.EMAIL, "bob@example.com", "destination"))
        guesses, end = await guess_until_refused(replica, otp)
        judged += guesses
        assert isinstance(end, TooManyGuesses)
        # The right code does not pass either, nor on any other replica.
        with pytest.raises(TooManyGuesses):
            await Replica(pool, guess_limits=limits, clock=clock).verify(otp)
        waits.append(end.retry_after_seconds)
        clock.advance(seconds=end.retry_after_seconds)
    assert judged == limits.wrong_guesses
    assert waits[:-1] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert clock.now == start + limits.window
    # Three of the twelve no longer count. After one more the next pause ends as others leave: 15 s later six are left,
    # whose pause is 8 s; 7 s later it was seven, whose pause is 16 s.
    otp = (await replica.send("+6281234567890", channel=Channel.SMS)).record.otp
    guesses, end = await guess_until_refused(replica, otp)
    assert isinstance(end, TooManyGuesses)
    assert (guesses, end.retry_after_seconds) == (1, 15)


async def test_a_pause_ends_exactly_at_its_microsecond(pool: Pool) -> None:
    clock = ManualClock()
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


async def test_the_guess_budget_of_one_organization_does_not_limit_another(replica: Replica) -> None:
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
