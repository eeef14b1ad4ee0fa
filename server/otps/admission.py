"""Decides which sends are accepted. All of the business rule of a send is here, and nothing else is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from server.credits.accounts import Account
from server.errors import (
    DeadlineExceeded,
    DomainError,
    InsufficientCredits,
    OtpAlreadyVerified,
    OtpAttemptsExhausted,
    OtpCanceled,
    OtpExpired,
    OtpNotFound,
    RequestIdReused,
)
from server.otps.limits import RecentSend, SendLimits, Spending, UnverifiedCredits, check_limits, count_send
from server.otps.otp import Delivery, DeliveryStatus, Otp, OtpStatus, Target


@dataclass(slots=True)
class Send:
    """One request to send: of a new OTP, or of an existing one once more."""

    request_id: UUID
    request_fingerprint: bytes
    delivery_id: UUID
    otp: Otp
    target: Target
    resend: bool = False
    fallbacks_sealed: bytes | None = None
    deadline: datetime | None = None
    """From then on the caller no longer waits, and nothing may be charged."""


class Admitted(NamedTuple):
    """Accepted: charge it, record it, send it."""

    send: Send
    delivery: Delivery
    low_balance: bool


class Replayed(NamedTuple):
    """Accepted before under the same request_id: answer the same, do nothing."""

    delivery: Delivery
    low_balance: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Not accepted: nothing is written."""

    error: DomainError


Decision = Admitted | Replayed | Refused
RequestKey = tuple[str, UUID]
OtpKey = tuple[str, UUID]
DestinationKey = tuple[str, bytes]
AreaKey = tuple[str, str]

CLOSED: Mapping[OtpStatus, type[DomainError]] = {
    OtpStatus.VERIFIED: OtpAlreadyVerified,
    OtpStatus.CANCELED: OtpCanceled,
    OtpStatus.ATTEMPTS_EXHAUSTED: OtpAttemptsExhausted,
    OtpStatus.EXPIRED: OtpExpired,
}
"""Why an OTP that is not pending refuses a send or a guess."""


@dataclass(slots=True)
class State:
    """What the decision depends on, as read under the accounts' locks. `admit` brings it up to date as it decides."""

    accounts: dict[str, Account]
    deliveries: dict[RequestKey, Delivery] = field(default_factory=dict)
    """The earlier deliveries with the same request_ids."""
    recent_sends: dict[DestinationKey, list[RecentSend]] = field(default_factory=dict)
    """Of the last day, oldest first."""
    otp_statuses: dict[OtpKey, OtpStatus] = field(default_factory=dict)
    """Of the OTPs that are to be sent again."""
    unverified: dict[AreaKey, UnverifiedCredits] = field(default_factory=dict)
    """What was spent in the areas of those sends that are to phones."""
    newly_low: list[Account] = field(default_factory=list)
    """The accounts whose balance these sends made low."""


def admit(sends: Sequence[Send], state: State, *, now: datetime, limits: SendLimits) -> list[Decision]:
    """Decide each send as if they had come one after another, in order.

    A request_id that was accepted before, also earlier in the same batch, is replayed when its fingerprint is the
    same and refused otherwise. An organization without an account has no credits.
    """
    return [_decide(send, state, now, limits) for send in sends]


def _decide(send: Send, state: State, now: datetime, limits: SendLimits) -> Decision:
    otp, target = send.otp, send.target
    account = state.accounts.get(otp.organization_id)
    if account is None:
        return Refused(InsufficientCredits(required_credits=target.credits, available_credits=0))
    request = (otp.organization_id, send.request_id)
    earlier = state.deliveries.get(request)
    if earlier is not None:
        if earlier.request_fingerprint != send.request_fingerprint:
            return Refused(RequestIdReused())
        return Replayed(earlier, earlier.balance_after < account.low_balance_threshold)
    spending = _spending(send, state, now)
    try:
        recent = _check(send, account, state, spending, now, limits)
    except DomainError as error:
        return Refused(error)
    count_send(account, now=now)
    if spending:
        spending.count(now=now, limits=limits)
    if account.apply(-target.credits, now=now):
        state.newly_low.append(account)
    delivery = _delivery(send, account, now)
    recent.append(RecentSend(now, otp.purpose))
    state.deliveries[request] = delivery
    return Admitted(send, delivery, account.low_balance)


def _spending(send: Send, state: State, now: datetime) -> Spending | None:
    """What counts towards its areas' limits; None for mail."""
    target = send.target
    if not target.areas:
        return None
    keys = [(send.otp.organization_id, area) for area in target.areas.split()]
    return Spending([state.unverified.setdefault(key, UnverifiedCredits(now)) for key in keys], target.credits)


def _check(
    send: Send, account: Account, state: State, spending: Spending | None, now: datetime, limits: SendLimits
) -> list[RecentSend]:
    """Raise why the send is refused, or give the sends that its destination had."""
    otp, target = send.otp, send.target
    if send.deadline is not None and now >= send.deadline:
        raise DeadlineExceeded
    if send.resend:
        status = state.otp_statuses.get((otp.organization_id, otp.otp_id))
        if status is None:
            raise OtpNotFound
        otp.status = status
        if closed := CLOSED.get(otp.status_at(now)):
            raise closed
    if account.available_credits < target.credits:
        raise InsufficientCredits(required_credits=target.credits, available_credits=account.available_credits)
    recent = state.recent_sends.setdefault((otp.organization_id, target.destination_digest), [])
    check_limits(account, recent, otp.purpose, spending=spending, now=now, limits=limits)
    return recent


def _delivery(send: Send, account: Account, now: datetime) -> Delivery:
    otp, target = send.otp, send.target
    return Delivery(
        organization_id=otp.organization_id,
        delivery_id=send.delivery_id,
        otp_id=otp.otp_id,
        request_id=send.request_id,
        request_fingerprint=send.request_fingerprint,
        purpose=otp.purpose,
        channel=target.channel,
        destination_digest=target.destination_digest,
        destination_sealed=target.destination_sealed,
        masked_destination=target.masked_destination,
        credits=target.credits,
        ledger_sequence=account.last_sequence,
        balance_after=account.available_credits,
        status=DeliveryStatus.QUEUED,
        refunded=False,
        failure_reason="",
        create_time=now,
        areas=target.areas,
    )
