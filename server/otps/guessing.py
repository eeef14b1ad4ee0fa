"""Decides guesses: right, wrong, or not even looked at. Fails closed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from server.errors import DeadlineExceeded, DomainError, OtpNotFound, TooManyGuesses, WrongCode
from server.otps.admission import CLOSED, DestinationKey, OtpKey
from server.otps.otp import Otp, OtpStatus


@dataclass(frozen=True, slots=True)
class GuessLimits:
    """How many wrong guesses a destination takes, across all its OTPs.

    The chance to hit a code of n digits within a window, wherever it begins, is at most wrong_guesses / 10**n.
    """

    wrong_guesses: int = 50
    """Within any window. NIST SP 800-63B allows at most 100 in a row."""
    window: timedelta = timedelta(days=1)
    free_guesses: int = 10
    """Wrong guesses within a window without a pause; each further one doubles the pause before the next guess."""
    first_pause: timedelta = timedelta(seconds=1)
    longest_pause: timedelta = timedelta(minutes=15)

    def pause(self, wrong_guesses: int) -> timedelta:
        """From the last of so many wrong guesses to the next guess."""
        excess = wrong_guesses - self.free_guesses
        if excess < 0 or not wrong_guesses:
            return timedelta()
        return min(self.first_pause * (1 << min(excess, 20)), self.longest_pause)


@dataclass(slots=True)
class GuessBudget:
    """The wrong guesses at one destination that may still count, oldest first."""

    wrong_guess_times: list[datetime]

    def wait(self, *, now: datetime, limits: GuessLimits) -> timedelta:
        """How long no guess at this destination is looked at; zero when one is.

        As the oldest wrong guesses leave the window, fewer count, and the pause after the last one is shorter.
        """
        counting = self._counting(now, limits)
        if not counting:
            return timedelta()
        moments = (
            max(begin, counting[-1] + limits.pause(left))
            for left, begin in zip(
                range(len(counting), -1, -1), [now, *(time + limits.window for time in counting)], strict=True
            )
            if left < limits.wrong_guesses
        )
        return min(moments) - now

    def count(self, *, now: datetime, limits: GuessLimits) -> None:
        """Count a wrong guess, and forget those that no longer count."""
        self.wrong_guess_times = [*self._counting(now, limits), now]

    def _counting(self, now: datetime, limits: GuessLimits) -> list[datetime]:
        return [time for time in self.wrong_guess_times if time + limits.window > now]


@dataclass(slots=True)
class Guess:
    """One try at an OTP's code."""

    organization_id: str
    otp_id: UUID
    request_id: UUID
    code: str
    """Without spaces and hyphens."""
    context_digest: bytes
    deadline: datetime | None = None
    """From then on the caller no longer waits, and nothing is counted."""
    right: bool = False
    """Whether code and context are the OTP's; false as long as nobody has looked."""


@dataclass(slots=True)
class GuessState:
    """The OTPs and budgets that guesses are about, locked. `judge` brings them up to date as it decides."""

    otps: dict[OtpKey, Otp]
    budgets: dict[DestinationKey, GuessBudget]
    changed_otps: dict[OtpKey, Otp] = field(default_factory=dict)
    changed_budgets: dict[DestinationKey, GuessBudget] = field(default_factory=dict)


def judge(
    guesses: Sequence[Guess], state: GuessState, *, now: datetime, limits: GuessLimits
) -> list[Otp | DomainError]:
    """Decide each guess as if they had come one after another: the verified OTP, or the error to answer.

    A wrong guess is counted on its OTP and on the destination. The last allowed attempt is accepted when it is right.
    A repeat of the request that verified the OTP, with the same code, gets the OTP again.
    """
    return [_decide(guess, state, now, limits) for guess in guesses]


def _decide(guess: Guess, state: GuessState, now: datetime, limits: GuessLimits) -> Otp | DomainError:
    otp = state.otps.get((guess.organization_id, guess.otp_id))
    if otp is None:
        return OtpNotFound()
    if otp.status is OtpStatus.VERIFIED and otp.verify_request_id == guess.request_id and guess.right:
        return otp
    destination = (guess.organization_id, otp.destination_digest)
    budget = state.budgets.get(destination)
    if refusal := _refusal(guess, otp, budget, now, limits):
        return refusal
    state.changed_otps[guess.organization_id, guess.otp_id] = otp
    if guess.right:
        otp.status = OtpStatus.VERIFIED
        otp.verify_time = now
        otp.verify_request_id = guess.request_id
        return otp
    if budget is None:
        raise LookupError("the budget of a wrong guess must be locked before it is judged")
    budget.count(now=now, limits=limits)
    state.changed_budgets[destination] = budget
    otp.attempts += 1
    if otp.attempts >= otp.max_attempts:
        otp.status = OtpStatus.ATTEMPTS_EXHAUSTED
    return WrongCode(attempts_remaining=otp.max_attempts - otp.attempts)


def _refusal(
    guess: Guess, otp: Otp, budget: GuessBudget | None, now: datetime, limits: GuessLimits
) -> DomainError | None:
    """Why this guess is not looked at, right or wrong."""
    if guess.deadline is not None and now >= guess.deadline:
        return DeadlineExceeded()
    if closed := CLOSED.get(otp.status_at(now)):
        return closed()
    if budget is not None and (wait := budget.wait(now=now, limits=limits)) > timedelta():
        return TooManyGuesses(retry_after_seconds=wait.total_seconds())
    return None
