"""Replicas with neighbouring digest rings: nothing that depends on digests notices that the key changes."""

from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest

from server.errors import RequestIdReused, ResendTooSoon, TooManyGuesses, TooManySends, WrongCode
from server.otps.admission import SendLimits
from server.otps.crypto import KEY_BYTES, Crypto
from server.otps.guess_policy import GuessLimits
from server.otps.key_rotation import find_digest_uses
from server.otps.otp import OtpStatus
from server.otps.recipients import RawDestination
from server.otps.sms_pumping import AreaPolicy
from server.otps.verify import SQL
from server.postgres.pool import Pool, acquire
from server.providers.provider import Channel
from tests.integration.otps.replica import NO_LIMITS, ManualClock, Replica, count_rows, fund, wrong

SECRETS = {"old": b"4" * KEY_BYTES, "new": b"5" * KEY_BYTES}
BOB, NUMBER = "bob@example.com", "+6281234567890"


def replicas(
    pool: Pool,
    *,
    limits: SendLimits = NO_LIMITS,
    guess_limits: GuessLimits | None = None,
    areas: AreaPolicy | None = None,
    clock: ManualClock | None = None,
) -> list[Replica]:
    """A replica at each step of a rotation; those of neighbouring steps run at the same time."""
    rings = (["old"], ["new", "old"], ["old", "new"], ["new"])
    return [
        Replica(
            pool,
            limits=limits,
            guess_limits=guess_limits or GuessLimits(),
            areas=areas or AreaPolicy(),
            clock=clock or ManualClock(),
            crypto=Crypto({"k1": b"1" * KEY_BYTES}, digest_secrets={key_id: SECRETS[key_id] for key_id in ring}),
        )
        for ring in rings
    ]


async def test_a_code_is_right_with_its_context_on_the_replicas_before_and_after(pool: Pool) -> None:
    await fund(pool, 100)
    steps = replicas(pool)
    for step, replica in enumerate(steps):
        for other in steps[max(0, step - 1) : step + 2]:
            otp = (await replica.send(context="IDR 100")).record.otp
            code = replica.crypto.code_of(otp)
            with pytest.raises(WrongCode):
                await other.verify(otp, code, context="IDR 101")
            assert (await other.verify(otp, code, context="IDR 100")).status is OtpStatus.VERIFIED


async def test_a_repeat_is_recognized_by_every_replica_and_another_request_is_not(pool: Pool) -> None:
    await fund(pool, 100)
    steps = replicas(pool)
    for step, replica in enumerate(steps):
        request_id, resend_id = uuid4(), uuid4()
        sent = await replica.send(BOB, request_id=request_id)
        resent = await replica.resend(sent.record.otp, request_id=resend_id)
        for number, other in enumerate(steps):
            again = await other.send(BOB, request_id=request_id)
            assert (again.replayed, again.delivery.delivery_id) == (True, sent.delivery.delivery_id)
            again = await other.resend(sent.record.otp, request_id=resend_id)
            assert (again.replayed, again.delivery.delivery_id) == (True, resent.delivery.delivery_id)
            if abs(step - number) > 1:  # without the key, only the request_id tells
                continue
            with pytest.raises(RequestIdReused):
                await other.send(BOB, request_id=request_id, purpose="payment")
            with pytest.raises(RequestIdReused):
                await other.send("ann@example.com", request_id=request_id)
            with pytest.raises(RequestIdReused):
                await other.resend(
                    sent.record.otp, request_id=resend_id, destination=RawDestination(Channel.EMAIL, BOB, "destination")
                )
    assert await count_rows(pool, "deliveries") == 2 * len(steps)


async def test_neighbours_share_the_cooldowns_and_counts_of_a_destination(pool: Pool) -> None:
    await fund(pool, 100)
    limits, clock = SendLimits(timedelta(seconds=30), 5, 0, 0), ManualClock()
    for pair in pairwise(replicas(pool, limits=limits, clock=clock)):
        for replica, other in (pair, pair[::-1]) * 2:
            await replica.send(BOB)
            with pytest.raises(ResendTooSoon):
                await other.send(BOB)
            clock.advance(minutes=1)
        await pair[0].send(BOB)
        clock.advance(minutes=1)
        for replica in pair:
            with pytest.raises(TooManySends):
                await replica.send(BOB)
        clock.advance(days=1)


async def test_a_lone_send_on_a_cached_account_has_the_cooldown_of_a_send_with_the_other_key(pool: Pool) -> None:
    await fund(pool, 100)
    _, known, used, _ = replicas(pool, limits=SendLimits(timedelta(seconds=30), 0, 0, 0))
    await known.send(BOB)
    await used.send()
    await used.send()
    with pytest.raises(ResendTooSoon):
        await used.send(BOB)


async def test_neighbours_share_the_guesses_at_a_destination(pool: Pool) -> None:
    await fund(pool, 100)
    limits, clock = GuessLimits(wrong_guesses=8, free_guesses=100), ManualClock()
    for pair in pairwise(replicas(pool, guess_limits=limits, clock=clock)):
        otps = [(await replica.send(BOB, max_attempts=10)).record.otp for replica in pair]
        for number in range(8):
            with pytest.raises(WrongCode):
                await pair[number // 2 % 2].verify(otps[number % 2], wrong(otps[number % 2]))
        otps += [(await replica.send(BOB)).record.otp for replica in pair]
        for otp in otps:
            for replica in pair:
                with pytest.raises(TooManyGuesses):
                    await replica.verify(otp)
        clock.advance(days=1)


async def test_a_rotation_gives_a_prefix_no_further_credits(pool: Pool) -> None:
    await fund(pool, 100)
    limits = SendLimits(timedelta(), 0, 0, 0, unverified_credits_per_prefix=9)
    steps = replicas(pool, limits=limits, areas=AreaPolicy(prefix_digits=7))
    sent = [await replica.send(NUMBER, channel=Channel.SMS) for replica in steps[:3]]
    for replica in steps[:3]:
        with pytest.raises(TooManySends):
            await replica.send(NUMBER, channel=Channel.SMS)
    await steps[2].verify(sent[2].record.otp)
    await steps[3].send(NUMBER, channel=Channel.SMS)


@pytest.mark.plain_postgres  # reads the plan; tests/cluster/statements.py reads Citus's
async def test_a_plan_made_while_the_table_is_empty_finds_budgets_by_their_whole_key(pool: Pool) -> None:
    query = SQL.lock_guess_budgets
    for number, name in enumerate(("organization_ids", "otp_ids", "first_otp_id"), start=1):
        query = query.replace(f"%({name})s", f"${number}")
    async with acquire(pool) as connection:
        await connection.execute(f"PREPARE budgets (text[], uuid[], uuid) AS {query}")
        plan = [
            row[0] for row in await (await connection.execute("EXPLAIN EXECUTE budgets (NULL, NULL, NULL)")).fetchall()
        ]
    condition = plan[next(number for number, line in enumerate(plan) if "guess_budgets_pkey" in line) + 1]
    assert "organization_id =" in condition
    assert "destination_digest =" in condition


async def test_the_uses_of_each_digest_key_are_known(pool: Pool) -> None:
    await fund(pool, 100)
    clock = ManualClock()
    _, known, used, new = replicas(pool, clock=clock)
    before = clock.now
    sent = await known.send()
    clock.advance(minutes=1)
    await used.send()
    await new.resend(sent.record.otp)
    assert await find_digest_uses(pool) == {"old": before, "new": clock.now}
