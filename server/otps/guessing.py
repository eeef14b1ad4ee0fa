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

    The chance to hit a code of n digits within one window is at most wrong_guesses / 10**n.
    """

    wrong_guesses: int = 50
    """Within one window. NIST SP 800-63B allows at most 100 in a row."""
    window: timedelta = timedelta(days=1)
    free_guesses: int = 10
    """Wrong guesses within a window without a pause; each further one doubles the pause before the next guess."""
    first_pause: timedelta = timedelta(seconds=1)
    longest_pause: timedelta = timedelta(minutes=15)


@dataclass(slots=True)
class GuessBudget:
    """The wrong guesses at one destination in its current window."""

    wrong_guesses: int
    window_start_time: datetime
    last_guess_time: datetime

    def wait(self, *, now: datetime, limits: GuessLimits) -> timedelta:
        """How long no guess at this destination is looked at; zero or less when one is."""
        until_new_window = self.window_start_time + limits.window - now
        if self.wrong_guesses >= limits.wrong_guesses:
            return until_new_window
        excess = self.wrong_guesses - limits.free_guesses
        if excess < 0 or not self.wrong_guesses:
            return timedelta()
        pause = min(limits.first_pause * (1 << min(excess, 20)), limits.longest_pause)
        return min(self.last_guess_time + pause - now, until_new_window)

    def count(self, *, now: datetime, limits: GuessLimits) -> None:
        """Count a wrong guess, in a new window when the current one is over."""
        if now >= self.window_start_time + limits.window:
            self.wrong_guesses = 0
            self.window_start_time = now
        self.wrong_guesses += 1
        self.last_guess_time = now


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
