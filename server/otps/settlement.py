"""Decides what the outcome of a provider call means: done, tried again, or given back and something else sent."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from server.channels.channel import Outcome, OutcomeKind
from server.credits.ledger import LedgerEntry, LedgerEntryKind
from server.errors import RetryLater
from server.otps.admission import Admitted, Refused, Send, State, admit
from server.otps.errands import DeliveryKey, Errand
from server.otps.limits import SendLimits
from server.otps.otp import DeliveryStatus

_STATUSES = {
    OutcomeKind.ACCEPTED: DeliveryStatus.SENT,
    OutcomeKind.REJECTED_DESTINATION: DeliveryStatus.FAILED,
    OutcomeKind.REJECTED_CONFIGURATION: DeliveryStatus.FAILED,
    OutcomeKind.NOT_SENT: DeliveryStatus.FAILED,
    OutcomeKind.UNKNOWN: DeliveryStatus.UNKNOWN,
}
_KNOWS_MORE = (OutcomeKind.ACCEPTED, OutcomeKind.UNKNOWN)
_FIRST_RETRY = timedelta(seconds=1)
_LONGEST_RETRY = timedelta(seconds=30)
_PATIENCE_WITH_FALLBACK = timedelta(seconds=20)
"""A person waits: where there is something else to try, a transient failure is tried again for so long only."""


class Report(NamedTuple):
    """What became of one errand."""

    errand: Errand
    outcome: Outcome

    @property
    def status(self) -> DeliveryStatus:
        """Where it leaves the delivery, when it is not tried again."""
        return _STATUSES[self.outcome.kind]

    def next_attempt_time(self, now: datetime) -> datetime | None:
        """When to try again; None when that would be pointless or dangerous."""
        if self.outcome.kind is not OutcomeKind.NOT_SENT:
            return None
        errand = self.errand
        wait = min(_FIRST_RETRY * 2 ** min(errand.attempts, 10), _LONGEST_RETRY)
        if self.outcome.retry_after_seconds is not None:
            wait = max(wait, timedelta(seconds=self.outcome.retry_after_seconds))
        end = errand.otp.expire_time
        if errand.fallbacks_sealed is not None:
            end = min(end, errand.delivery.create_time + _PATIENCE_WITH_FALLBACK)
        return now + wait if now + wait < end else None


def decisive(reports: Iterable[Report]) -> list[Report]:
    """One report of each delivery, however often it was carried: one that may have sent it, else the latest lease's."""
    chosen: dict[DeliveryKey, Report] = {}
    for report in sorted(reports, key=_weight):
        chosen[report.errand.key] = report
    return list(chosen.values())


def _weight(report: Report) -> tuple[bool, datetime]:
    return report.outcome.kind in _KNOWS_MORE, report.errand.lease_expire_time


@dataclass(frozen=True, slots=True)
class Failure:
    """A delivery that definitely failed, and what may be sent instead of it, in order."""

    report: Report
    alternatives: Sequence[Send]


@dataclass(frozen=True, slots=True)
class Settlement:
    """What failures come to."""

    refunds: list[LedgerEntry] = field(default_factory=list)
    fallbacks: list[Admitted] = field(default_factory=list)
    """What is sent instead."""


def settle(failures: Sequence[Failure], state: State, *, now: datetime, limits: SendLimits) -> Settlement:
    """Give each failed delivery's credits back, and admit the first of its alternatives that may be sent.

    As if the failures had come one after another. An alternative is admitted as any send is, but for the cooldown and
    the organization's rate: the caller made one request. One too many for its destination is passed over; what the
    account cannot pay ends the search, and so does an OTP that is no longer pending: the failure then stands.
    """
    limits = replace(limits, cooldown=timedelta(), sends_per_organization_per_minute=0)
    settlement = Settlement()
    for failure in failures:
        settlement.refunds.append(_refund(failure.report, state, now))
        for send in failure.alternatives:
            (decision,) = admit([send], state, now=now, limits=limits)
            if isinstance(decision, Admitted):
                settlement.fallbacks.append(decision)
            if not isinstance(decision, Refused) or not isinstance(decision.error, RetryLater):
                break
    return settlement


def _refund(report: Report, state: State, now: datetime) -> LedgerEntry:
    """One ledger entry, linked to the delivery."""
    delivery = report.errand.delivery
    account = state.accounts[delivery.organization_id]
    account.give_back(delivery.credits)
    return LedgerEntry(
        organization_id=delivery.organization_id,
        sequence=account.last_sequence,
        kind=LedgerEntryKind.REFUND,
        credits=delivery.credits,
        balance_after=account.available_credits,
        reference_id=delivery.delivery_id,
        reason="",
        created_by="",
        create_time=now,
    )
