"""Decides what follows from the outcome of a provider call: a final status, a retry, or a refund and a fallback."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from server.credits.ledger import LedgerEntry, LedgerEntryKind
from server.errors import RetryLater
from server.otps.admission import Admitted, Refused, Send, SendLimits, State, decide
from server.otps.delivery.outbox import DeliveryJob, DeliveryKey
from server.otps.otp import DeliveryStatus
from server.otps.recipients import Fallback
from server.providers.provider import Outcome, OutcomeKind

_STATUSES = {
    OutcomeKind.ACCEPTED: DeliveryStatus.SENT,
    OutcomeKind.DELIVERED: DeliveryStatus.DELIVERED,
    OutcomeKind.REJECTED_DESTINATION: DeliveryStatus.FAILED,
    OutcomeKind.REJECTED_CONFIGURATION: DeliveryStatus.FAILED,
    OutcomeKind.NOT_SENT: DeliveryStatus.FAILED,
    OutcomeKind.UNKNOWN: DeliveryStatus.UNKNOWN,
}
_MAY_HAVE_SENT = (OutcomeKind.ACCEPTED, OutcomeKind.DELIVERED, OutcomeKind.UNKNOWN)
_FIRST_RETRY = timedelta(seconds=1)
_LONGEST_RETRY = timedelta(seconds=30)
_RETRIES_WITH_FALLBACK = timedelta(seconds=20)
"""How long a delivery with a fallback is retried: the person is waiting, and the fallback may work."""


class DeliveryResult(NamedTuple):
    """The outcome of one delivery job."""

    job: DeliveryJob
    outcome: Outcome

    @property
    def status(self) -> DeliveryStatus:
        """The delivery's final status, if it is not retried."""
        return _STATUSES[self.outcome.kind]

    def next_attempt_time(self, now: datetime) -> datetime | None:
        """When to retry; None when a retry could not work, or might send the message twice."""
        if self.outcome.kind is not OutcomeKind.NOT_SENT:
            return None
        job = self.job
        wait = min(_FIRST_RETRY * 2 ** min(job.attempts, 10), _LONGEST_RETRY)
        if self.outcome.retry_after_seconds is not None:
            wait = max(wait, timedelta(seconds=self.outcome.retry_after_seconds))
        end = job.admitted.expire_time
        if job.send.fallbacks_sealed is not None:
            end = min(end, job.admitted.create_time + _RETRIES_WITH_FALLBACK)
        return now + wait if now + wait < end else None


def one_result_per_delivery(results: Iterable[DeliveryResult]) -> list[DeliveryResult]:
    """Choose one result for each delivery: one that may have sent the message, else that of the latest lease."""
    chosen: dict[DeliveryKey, DeliveryResult] = {}
    for result in sorted(results, key=_precedence):
        chosen[result.job.key] = result
    return list(chosen.values())


def _precedence(result: DeliveryResult) -> tuple[bool, datetime]:
    return result.outcome.kind in _MAY_HAVE_SENT, result.job.lease_expire_time


@dataclass(frozen=True, slots=True)
class FailedDelivery:
    """A delivery that definitely failed, and its fallbacks, in order."""

    result: DeliveryResult
    fallbacks: Sequence[Send]


@dataclass(frozen=True, slots=True)
class Resolution:
    """The refunds and fallbacks of failed deliveries."""

    refunds: list[LedgerEntry] = field(default_factory=list)
    fallbacks: list[Admitted] = field(default_factory=list)
    """Admitted sends, at most one for each failed delivery."""


def resolve_failed(failed: Sequence[FailedDelivery], state: State, *, now: datetime, limits: SendLimits) -> Resolution:
    """Refund each failed delivery, and admit the first of its fallbacks that can be admitted.

    Decides as if the failures had come one after another. A fallback is admitted like any send, but without the
    cooldown and the organization's rate limit: the caller made one request. A fallback beyond another limit is skipped.
    No fallback is sent when the account cannot pay for it or the OTP is no longer pending.
    """
    resolution = Resolution()
    for failure in failed:
        if failure.result.job.send.recipient.credits:
            resolution.refunds.append(_refund(failure.result, state, now))
        if admitted := admit_fallback(failure.fallbacks, state, now=now, limits=limits):
            resolution.fallbacks.append(admitted)
    return resolution


def admit_fallback(sends: Iterable[Send], state: State, *, now: datetime, limits: SendLimits) -> Admitted | None:
    """Admit the first of a delivery's fallbacks that can be admitted, as `resolve_failed` says; None without one."""
    for send in sends:
        own = state.limits.get(send.organization_id, limits)
        of_fallbacks = replace(own, cooldown=timedelta(), sends_per_organization_per_minute=0)
        decision = decide(send, state, now, of_fallbacks)
        if isinstance(decision, Admitted):
            return decision
        if not isinstance(decision, Refused) or not isinstance(decision.error, RetryLater):
            break
    return None


def fall_back_time(job: DeliveryJob, fallback: Fallback) -> datetime:
    """When the next fallback of a delivery that may have been sent is due without a report of a failure.

    The OTP's end when it has no delay of its own: until then a failure may be reported.
    """
    admitted = job.admitted
    if fallback.after_seconds is None:
        return admitted.expire_time
    return min(admitted.expire_time, admitted.create_time + timedelta(seconds=fallback.after_seconds))


def _refund(result: DeliveryResult, state: State, now: datetime) -> LedgerEntry:
    """Refund a delivery's credits to its account; the ledger entry refers to the delivery."""
    send = result.job.send
    account, credits = state.accounts[send.organization_id], send.recipient.credits
    account.refund(credits)
    if send.organization_id in state.spent:
        state.spent[send.organization_id] -= credits
    return LedgerEntry(
        organization_id=send.organization_id,
        sequence=account.last_sequence,
        kind=LedgerEntryKind.REFUND,
        credits=credits,
        balance_after=account.available_credits,
        reference_id=send.delivery_id,
        reason="",
        created_by="",
        create_time=now,
    )
