"""An attacker who guesses codes through VerifyOtp as fast as allowed gets no further than the README states."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pulsa.errors import PulsaError

from tests.acceptance.deployment import Deployment, deployed
from tests.callers import reason_of, refusal_of
from tests.waiting import until

WRONG_GUESSES, HOURS = 12, 24
WINDOW_SECONDS = HOURS * 3600.0
NUMBER = "+6281234567890"
LIMIT: dict[str, Any] = {
    "cooldown_seconds": 0,
    "sends_per_destination_per_hour": 0,
    "sends_per_destination_per_day": 0,
    "unverified_credits_per_country": 0,
    "wrong_guesses": WRONG_GUESSES,
    "guess_window_hours": HOURS,
    "free_guesses": 4,
}


@pytest.fixture
async def pulsa(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database_url, tmp_path, limit=LIMIT) as deployment:
        for name in ("acme", "other"):
            await deployment.grant(10_000, name)
        yield deployment


def wrong(code: str, number: int = 1) -> str:
    return f"{(int(code) + number) % 10**6:06}"


@dataclass
class Attacker:
    """Guesses the codes of one recipient. Its clock is the real one plus the time that it has waited."""

    pulsa: Deployment
    database_url: str
    organization_id: str = "acme"
    waited_seconds: float = 0
    checked: list[tuple[float, float]] = field(default_factory=list)
    """Of each guess that was checked, the times before and after the call."""
    waits: list[tuple[float, float, float]] = field(default_factory=list)
    """Of each refused guess, the times before and after the call, and its retry_after_seconds."""

    def now(self) -> float:
        return time.monotonic() + self.waited_seconds

    async def attack(self, guesses: int) -> None:
        """Make this many wrong guesses, each seven at a new code.

        A code is sent by alternating channels, and again to another destination, from which the attacker reads it.
        """
        for channel in cycle(({"sms": NUMBER}, {"whatsapp": NUMBER})):
            sent = await self.pulsa.send(self.organization_id, **channel, max_attempts=10)
            other_address = f"{sent.otp.otp_id}@mail.example"
            again = {"otp_id": sent.otp.otp_id, "destination": {"email": other_address}}
            await self.pulsa.call("ResendOtp", self.organization_id, **again)
            code = await self.pulsa.code_sent_to(other_address)
            for number in range(1, 8):
                await self._guess(sent.otp.otp_id, wrong(code, number), right=code)
                if len(self.checked) == guesses:
                    return

    async def _guess(self, otp_id: str, code: str, *, right: str) -> None:
        """Guess once. If refused, wait for retry_after_seconds; the guess must then be checked."""
        refused = await self._try(otp_id, code)
        if refused is not None:
            assert await reason_of(self._verify(otp_id, right)) == "TOO_MANY_GUESSES"
            self._wait(refused)
            assert await self._try(otp_id, code) is None

    async def _try(self, otp_id: str, code: str) -> float | None:
        """Return how long to wait in seconds; None if the guess was checked."""
        before = self.now()
        error = await refusal_of(self._verify(otp_id, code))
        if error.reason == "WRONG_CODE":
            self.checked.append((before, self.now()))
            return None
        assert error.reason == "TOO_MANY_GUESSES"
        assert error.retry_after_seconds is not None
        self.waits.append((before, self.now(), error.retry_after_seconds))
        return error.retry_after_seconds

    def _verify(self, otp_id: str, code: str) -> Any:
        return self.pulsa.call("VerifyOtp", self.organization_id, otp_id=otp_id, code=code)

    def _wait(self, seconds: float) -> None:
        """Simulate the wait: move the stored guess times back by it."""
        self.waited_seconds += seconds
        wait = timedelta(seconds=seconds)
        with psycopg.connect(self.database_url) as connection:
            found = connection.execute(
                "SELECT organization_id, destination_digest, wrong_guess_times FROM guess_budgets"
            )
            for *key, guess_times in found.fetchall():
                earlier = [guess_time - wait for guess_time in guess_times]
                connection.execute(
                    "UPDATE guess_budgets SET last_guess_time = %s, wrong_guess_times = %s"
                    " WHERE organization_id = %s AND destination_digest = %s",
                    [max(earlier), sorted(earlier), *key],
                )


async def test_no_24_hours_have_more_checked_guesses_than_the_documented_limit(
    pulsa: Deployment, database_url: str
) -> None:
    attacker = Attacker(pulsa, database_url)
    await attacker.attack(3 * WRONG_GUESSES)

    # Any guess and the one that is WRONG_GUESSES later are at least 24 hours apart.
    spans = [
        late[1] - early[0] for early, late in zip(attacker.checked, attacker.checked[WRONG_GUESSES:], strict=False)
    ]
    assert min(spans) >= WINDOW_SECONDS
    # And not much more: the limit can be used up every day.
    assert attacker.checked[-1][1] - attacker.checked[0][0] < 3 * WINDOW_SECONDS


async def test_the_retry_delay_ends_when_the_oldest_guess_leaves_the_window(
    pulsa: Deployment, database_url: str
) -> None:
    attacker = Attacker(pulsa, database_url)
    await attacker.attack(WRONG_GUESSES + 1)

    before, after, wait = attacker.waits[-1]
    first_before, first_after = attacker.checked[0]
    assert first_before + WINDOW_SECONDS - after <= wait <= first_after + WINDOW_SECONDS - before + 1


async def test_of_64_concurrent_guesses_only_as_many_as_the_limit_are_checked(
    database_url: str, tmp_path: Path
) -> None:
    async with deployed(database_url, tmp_path, limit=LIMIT | {"free_guesses": WRONG_GUESSES}) as pulsa:
        await pulsa.grant(100)
        sent = [await pulsa.send(sms=NUMBER, max_attempts=10) for _ in range(8)]
        codes = {message["code"] for message in await pulsa.messages_to(NUMBER)}
        guess = next(code for code in map("{:06}".format, range(10)) if code not in codes)
        guesses = (pulsa.call("VerifyOtp", otp_id=each.otp.otp_id, code=guess) for each in sent * 8)
        answers = await asyncio.gather(*guesses, return_exceptions=True)

    reasons = Counter(answer.reason for answer in answers if isinstance(answer, PulsaError))
    assert reasons == {"WRONG_CODE": WRONG_GUESSES, "TOO_MANY_GUESSES": 64 - WRONG_GUESSES}


async def test_an_attack_through_another_organization_does_not_lock_the_recipient_out(
    pulsa: Deployment, database_url: str
) -> None:
    attacker = Attacker(pulsa, database_url, organization_id="other")
    await attacker.attack(WRONG_GUESSES)
    theirs = await pulsa.send("other", sms=NUMBER)
    refused = await refusal_of(pulsa.call("VerifyOtp", "other", otp_id=theirs.otp.otp_id, code="000000"))

    ours = await pulsa.send(sms=NUMBER)
    code = await pulsa.code_sent_to(NUMBER)
    stolen = await refusal_of(pulsa.call("VerifyOtp", "other", otp_id=ours.otp.otp_id, code=code))
    await pulsa.call("VerifyOtp", otp_id=ours.otp.otp_id, code=code)
    assert (refused.reason, stolen.reason) == ("TOO_MANY_GUESSES", "OTP_NOT_FOUND")


async def test_a_flood_of_guesses_stops_neither_another_organization_nor_other_otps(
    database_url: str, tmp_path: Path
) -> None:
    async with deployed(database_url, tmp_path, limit={"calls_at_once": 20}) as pulsa:
        for name in ("acme", "other"):
            await pulsa.grant(100, name)
        attacked = [(await pulsa.send(email=f"attacked{number}@mail.example")).otp.otp_id for number in range(4)]
        reasons, ended = Counter[str](), asyncio.Event()

        async def guess(number: int) -> None:
            while not ended.is_set():
                reason = await reason_of(pulsa.call("VerifyOtp", otp_id=attacked[number % 4], code="0000000"))
                reasons[reason] += 1
                await asyncio.sleep(0.05 if reason == "OVERLOADED" else 0)

        attackers = [asyncio.create_task(guess(number)) for number in range(64)]
        await until(lambda: reasons["OVERLOADED"] and reasons["OTP_ATTEMPTS_EXHAUSTED"])
        for number in range(5):
            sent = await pulsa.send("other", email=f"jane{number}@mail.example")
            code = await pulsa.code_sent_to(f"jane{number}@mail.example")
            await pulsa.call("VerifyOtp", "other", otp_id=sent.otp.otp_id, code=code)
        ended.set()
        await asyncio.gather(*attackers)

        sent = await pulsa.send(email="joe@mail.example")
        await pulsa.call("VerifyOtp", otp_id=sent.otp.otp_id, code=await pulsa.code_sent_to("joe@mail.example"))
        assert set(reasons) == {"WRONG_CODE", "OTP_ATTEMPTS_EXHAUSTED", "OVERLOADED"}
        assert reasons["WRONG_CODE"] == 4 * 5
