"""Decides guesses: right, wrong and counted, or refused without a comparison. Does no I/O."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from server.errors import DeadlineExceeded, DomainError, OtpNotFound, TooManyGuesses, WrongCode
from server.otps.admission import DestinationKey
from server.otps.otp import CLOSED, Otp, OtpKey, OtpStatus


@dataclass(frozen=True, slots=True)
class GuessLimits:
    """The limits on wrong guesses at one destination, across all its OTPs.

    The chance to guess a code of n digits within any window is at most wrong_guesses / 10**n.
    """

    wrong_guesses: int = 50
    """The most within any window. NIST SP 800-63B allows at most 100 in a row."""
    window: timedelta = timedelta(days=1)
    free_guesses: int = 10
    """Wrong guesses within a window before pauses begin. That many make the next guess wait for `first_pause`; each
    further one doubles the pause."""
    first_pause: timedelta = timedelta(seconds=1)
    longest_pause: timedelta = timedelta(minutes=15)

    def pause(self, wrong_guesses: int) -> timedelta:
        """Minimum delay between the n-th wrong guess in a window and the next guess."""
        excess = wrong_guesses - self.free_guesses
        if excess < 0 or not wrong_guesses:
            return timedelta()
        return min(self.first_pause * (1 << min(excess, 20)), self.longest_pause)


@dataclass(slots=True)
class GuessBudget:
    """The times of the wrong guesses at one destination that may still be in the window, oldest first."""

    wrong_guess_times: list[datetime]

    def wait(self, *, now: datetime, limits: GuessLimits) -> timedelta:
        """Time until the next guess at this destination is allowed; zero if it is allowed now.

        As the oldest wrong guesses leave the window, fewer are counted, so the pause after the last one gets shorter.
        """
        counted = self._in_window(now, limits)
        if not counted:
            return timedelta()
        allowed_times = (
            max(begin, counted[-1] + limits.pause(count))
            for count, begin in zip(
                range(len(counted), -1, -1), [now, *(time + limits.window for time in counted)], strict=True
            )
            if count < limits.wrong_guesses
        )
        return min(allowed_times) - now

    def count(self, *, now: datetime, limits: GuessLimits) -> None:
        """Add a wrong guess, and drop those that have left the window."""
        self.wrong_guess_times = [*self._in_window(now, limits), now]

    def _in_window(self, now: datetime, limits: GuessLimits) -> list[datetime]:
        return [time for time in self.wrong_guess_times if time + limits.window > now]


@dataclass(slots=True)
class Guess:
    """One try at an OTP's code."""

    organization_id: str
    otp_id: UUID
    request_id: UUID
    code: str
    """Its digits as 0 to 9, without spaces and dashes."""
    context: str
    deadline: datetime | None = None
    """The call's deadline: from then on the guess is refused, and nothing is counted."""
    right: bool = False
    """Whether code and context are the OTP's; false until they are compared."""

    @property
    def key(self) -> OtpKey:
        """Identifies the OTP."""
        return self.organization_id, self.otp_id


@dataclass(slots=True)
class GuessState:
    """The OTPs and budgets of some guesses, locked. `judge` updates them with each guess."""

    otps: dict[OtpKey, Otp]
    budgets: dict[DestinationKey, GuessBudget]
    changed_otps: dict[OtpKey, Otp] = field(default_factory=dict)
    changed_budgets: dict[DestinationKey, GuessBudget] = field(default_factory=dict)


def judge(
    guesses: Sequence[Guess], state: GuessState, *, now: datetime, limits: GuessLimits
) -> list[Otp | DomainError]:
    """Decide each guess, in order, as if they had come one after another: the verified OTP, or the error.

    A wrong guess is counted on its OTP and on the destination. The last allowed attempt is accepted when it is right.
    A repeat of the request that verified the OTP, with the same code, gets the OTP again. Raises LookupError for a
    wrong guess without a locked budget, so that no wrong guess is left uncounted.
    """
    return [_decide(guess, state, now, limits) for guess in guesses]


def _decide(guess: Guess, state: GuessState, now: datetime, limits: GuessLimits) -> Otp | DomainError:
    otp = state.otps.get((guess.organization_id, guess.otp_id))
    if otp is None:
        return OtpNotFound()
    if otp.status is OtpStatus.VERIFIED and otp.verify_request_id == guess.request_id and guess.right:
        return otp
    keys = otp.guess_budget_keys
    budgets = {key: state.budgets[key] for key in keys if key in state.budgets}
    if refusal := _refusal(guess, otp, budgets.values(), now, limits):
        return refusal
    state.changed_otps[guess.organization_id, guess.otp_id] = otp
    if guess.right:
        otp.status = OtpStatus.VERIFIED
        otp.verify_time = now
        otp.verify_request_id = guess.request_id
        return otp
    if len(budgets) < len(keys):
        raise LookupError("the budgets of a wrong guess must be locked before it is judged")
    for budget in budgets.values():
        budget.count(now=now, limits=limits)
    state.changed_budgets |= budgets
    otp.attempts += 1
    if otp.attempts >= otp.max_attempts:
        otp.status = OtpStatus.ATTEMPTS_EXHAUSTED
    return WrongCode(attempts_remaining=otp.max_attempts - otp.attempts)


def _refusal(
    guess: Guess, otp: Otp, budgets: Collection[GuessBudget], now: datetime, limits: GuessLimits
) -> DomainError | None:
    """Why the guess is refused, whether right or wrong; None when it is compared."""
    if guess.deadline is not None and now >= guess.deadline:
        return DeadlineExceeded()
    if closed := CLOSED.get(otp.status_at(now)):
        return closed()
    if budgets and (wait := max(budget.wait(now=now, limits=limits) for budget in budgets)) > timedelta():
        return TooManyGuesses(retry_after_seconds=wait.total_seconds())
    return None
