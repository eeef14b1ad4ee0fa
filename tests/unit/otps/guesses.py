"""Guesses for tests, and an in-memory store of what `judge` reads and writes."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from server.errors import DomainError, RetryLater, WrongCode
from server.otps.guess_policy import Guess, GuessBudget, GuessLimits, GuessState, judge
from server.otps.otp import Otp, OtpStatus

ACME = "acme"


def a_guess(
    otp_id: UUID, *, right: bool, request_id: int = 1, organization_id: str = ACME, deadline: datetime | None = None
) -> Guess:
    return Guess(organization_id, otp_id, UUID(int=request_id), "", "", deadline, right)


@dataclass
class GuessStore:
    """The committed OTPs and guess budgets. Only what `judge` reports as changed is written back."""

    otps: dict[tuple[str, UUID], Otp]
    budgets: dict[tuple[str, bytes], GuessBudget] = field(default_factory=dict)

    def judge(self, guesses: Sequence[Guess], *, now: datetime, limits: GuessLimits) -> list[Otp | DomainError]:
        state = GuessState(deepcopy(self.otps), deepcopy(self.budgets))
        for guess in guesses:
            otp = state.otps.get((guess.organization_id, guess.otp_id))
            if otp is not None and not guess.right and otp.status_at(now) is OtpStatus.PENDING:
                for key in otp.guess_budget_keys:
                    state.budgets.setdefault(key, GuessBudget([]))
        answers = judge(guesses, state, now=now, limits=limits)
        self.otps |= state.changed_otps
        self.budgets |= state.changed_budgets
        return answers


def verdict(answer: Otp | DomainError) -> tuple[object, ...]:
    """What a caller sees of an answer."""
    match answer:
        case Otp():
            return ("OK", answer.status, answer.verify_time)
        case RetryLater():
            return ("wait", timedelta(seconds=answer.retry_after_seconds))
        case WrongCode():
            return ("WrongCode", answer.attempts_remaining)
        case _:
            return (type(answer).__name__,)
