"""A model of the rule of a guess, as simple as possible: one at a time, everything recounted from the beginning."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from server.otps.guess_policy import Guess, GuessLimits
from server.otps.otp import Otp, OtpStatus

_CLOSED = {
    OtpStatus.VERIFIED: "OtpAlreadyVerified",
    OtpStatus.CANCELED: "OtpCanceled",
    OtpStatus.ATTEMPTS_EXHAUSTED: "OtpAttemptsExhausted",
}


@dataclass
class GuessModel:
    """One organization: its OTPs by id, as they were sent, and the guesses since."""

    otps: dict[int, Otp]
    limits: GuessLimits
    wrong: list[tuple[datetime, Otp]] = field(default_factory=list)
    right: dict[int, tuple[datetime, Guess]] = field(default_factory=dict)

    def decide(self, guess: Guess, now: datetime) -> tuple[object, ...]:
        otp = self.otps.get(guess.otp_id.int)
        if otp is None:
            return ("OtpNotFound",)
        verify_time, verifier = self.right.get(guess.otp_id.int, (None, None))
        if verifier is not None and verifier.request_id == guess.request_id and guess.right:
            return ("OK", OtpStatus.VERIFIED, verify_time)
        if guess.deadline and guess.deadline <= now:
            return ("DeadlineExceeded",)
        if closed := self._closed(otp, now):
            return (closed,)
        wait = self._earliest(otp, now) - now
        return ("wait", wait) if wait else self._judge(guess, otp, now)

    def _judge(self, guess: Guess, otp: Otp, now: datetime) -> tuple[object, ...]:
        if guess.right:
            self.right[guess.otp_id.int] = now, guess
            return ("OK", OtpStatus.VERIFIED, now)
        self.wrong.append((now, otp))
        return ("WrongCode", otp.max_attempts - self._attempts(otp))

    def _closed(self, otp: Otp, now: datetime) -> str | None:
        if otp.otp_id.int in self.right:
            return "OtpAlreadyVerified"
        if self._attempts(otp) == otp.max_attempts:
            return "OtpAttemptsExhausted"
        return _CLOSED.get(otp.status) or ("OtpExpired" if now >= otp.expire_time else None)

    def _attempts(self, otp: Otp) -> int:
        return sum(one is otp for _, one in self.wrong)

    def _earliest(self, otp: Otp, now: datetime) -> datetime:
        """The earliest time at which a guess at this OTP's destination is judged."""
        times = [time for time, one in self.wrong if one.destination_digest == otp.destination_digest]
        spans = [self.limits.window, *(self._pause(count) for count in range(len(times) + 1))]
        moments = [now, *sorted(time + span for time in times for span in spans)]
        return next(moment for moment in moments if moment >= now and self._fits(times, moment))

    def _fits(self, times: list[datetime], moment: datetime) -> bool:
        window = [time for time in times if moment - time < self.limits.window]
        if not window:
            return True
        return len(window) < self.limits.wrong_guesses and moment - window[-1] >= self._pause(len(window))

    def _pause(self, wrong_guesses: int) -> timedelta:
        if wrong_guesses < self.limits.free_guesses:
            return timedelta()
        pause = self.limits.first_pause
        for _ in range(wrong_guesses - self.limits.free_guesses):
            pause = min(2 * pause, self.limits.longest_pause)
        return min(pause, self.limits.longest_pause)
