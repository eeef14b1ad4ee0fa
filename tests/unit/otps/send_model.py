"""A model of the rule of a send, as simple as possible: one at a time, everything recounted from the beginning."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from server.otps.admission import Send, SendLimits
from server.otps.otp import OtpStatus
from tests.unit.otps.sends import START

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_CLOSED = {
    OtpStatus.VERIFIED: "OtpAlreadyVerified",
    OtpStatus.CANCELED: "OtpCanceled",
    OtpStatus.ATTEMPTS_EXHAUSTED: "OtpAttemptsExhausted",
}


@dataclass
class SendModel:
    """One organization."""

    credits: int
    low_balance_threshold: int
    limits: SendLimits
    otp_statuses: dict[int, OtpStatus]
    accepted: list[tuple[datetime, Send, int]] = field(default_factory=list)
    """Each with its time and the balance after it; the first has sequence 1."""

    def decide(self, send: Send, now: datetime) -> tuple[object, ...]:
        for sequence, (_, earlier, balance_after) in enumerate(self.accepted, start=1):
            if earlier.request_id == send.request_id:
                if (earlier.rpc, earlier.request_fingerprint) != (send.rpc, send.request_fingerprint):
                    return ("RequestIdReused",)
                return ("Replayed", sequence, balance_after, balance_after < self.low_balance_threshold)
        if refusal := self._refusal(send, now):
            return refusal
        self.credits -= send.recipient.credits
        self.accepted.append((now, send, self.credits))
        return ("Admitted", len(self.accepted), self.credits, self.credits < self.low_balance_threshold)

    def _refusal(self, send: Send, now: datetime) -> tuple[object, ...] | None:
        if send.deadline and send.deadline <= now:
            return ("DeadlineExceeded",)
        if send.resent:
            status = self.otp_statuses.get(send.otp_id.int)
            if status is None:
                return ("OtpNotFound",)
            if status in _CLOSED:
                return (_CLOSED[status],)
            if now >= send.resent.otp.expire_time:
                return ("OtpExpired",)
        if self.credits < send.recipient.credits:
            return ("InsufficientCredits",)
        wait = self._earliest(send, now) - now
        return ("wait", wait) if wait else None

    def _earliest(self, send: Send, now: datetime) -> datetime:
        """The earliest time at which the limits allow this send, if nothing else is sent until then."""
        spans = (self.limits.cooldown, MINUTE, HOUR, DAY)
        begins = [START, self._minute()[0], *(time for time, _, _ in self.accepted)]
        moments = sorted([now, _midnight(now) + DAY, *(begin + span for begin in begins for span in spans)])
        return next(moment for moment in moments if moment >= now and self._fits(send, moment))

    def _fits(self, send: Send, moment: datetime) -> bool:
        to_it = [
            (time, one.purpose)
            for time, one, _ in self.accepted
            if one.recipient.destination_digest == send.recipient.destination_digest
        ]
        begin, count = self._minute()
        limits = self.limits
        spent = sum(one.recipient.credits for time, one, _ in self.accepted if time >= _midnight(moment))
        return (
            all(moment - time >= limits.cooldown for time, purpose in to_it if purpose == send.purpose)
            and _below(sum(moment - time < HOUR for time, _ in to_it), limits.sends_per_destination_per_hour)
            and _below(sum(moment - time < DAY for time, _ in to_it), limits.sends_per_destination_per_day)
            and (not limits.daily_credit_cap or spent + send.recipient.credits <= limits.daily_credit_cap)
            and (moment - begin >= MINUTE or _below(count, limits.sends_per_organization_per_minute))
        )

    def _minute(self) -> tuple[datetime, int]:
        """When the organization's last counted minute began, and how many sends it had."""
        begin, count = START, 0
        for time, _, _ in self.accepted:
            if time - begin >= MINUTE:
                begin, count = time, 0
            count += 1
        return begin, count


def _midnight(moment: datetime) -> datetime:
    return datetime(moment.year, moment.month, moment.day, tzinfo=UTC)


def _below(count: int, most: int) -> bool:
    return most == 0 or count < most
