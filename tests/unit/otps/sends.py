"""Sends for tests, and an in-memory store of what `admit` reads and writes."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from server.credits.accounts import Account, Request, RequestKey
from server.errors import RetryLater
from server.otps.admission import (
    Admitted,
    Decision,
    RecentSend,
    Refused,
    Replayed,
    Send,
    SendLimits,
    State,
    admit,
    send_again,
    start_of_day,
)
from server.otps.otp import Delivery, Otp, OtpRecord, OtpStatus, Recipient
from server.providers.provider import Channel

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
NO_LIMITS = SendLimits(timedelta(), 0, 0, 0)


def an_otp(
    *, organization_id: str = "acme", otp_id: UUID | None = None, destination: bytes = b"bob", max_attempts: int = 5
) -> Otp:
    return Otp(
        organization_id=organization_id,
        otp_id=otp_id or uuid4(),
        purpose="login",
        locale="",
        destination_digest=destination,
        code_key_id="k1",
        code_length=6,
        context_digest=b"",
        web_otp_domain="",
        metadata={},
        status=OtpStatus.PENDING,
        attempts=0,
        max_attempts=max_attempts,
        create_time=START,
        expire_time=START + timedelta(minutes=5),
    )


def a_send(
    otp: Otp | None = None,
    *,
    request_id: int = 1,
    fingerprint: bytes = b"",
    credits: int = 1,
    resend: bool = False,
    deadline: datetime | None = None,
) -> Send:
    otp = otp or an_otp()
    send = send_again(
        OtpRecord(otp, ()),
        Recipient(Channel.EMAIL, credits, "", otp.destination_digest, b"", ""),
        request_id=UUID(int=request_id),
        request_fingerprint=fingerprint,
        delivery_id=uuid4(),
        deadline=deadline,
    )
    return send if resend else send._replace(resent=None)


def an_account(organization_id: str = "acme", *, credits: int, low_balance_threshold: int = 0) -> Account:
    return Account(organization_id, credits, 0, low_balance_threshold, None, START, 0)


@dataclass
class SendStore:
    """The committed accounts and deliveries. Each batch works on a copy; only what it admitted is written back."""

    accounts: dict[str, Account]
    otp_statuses: dict[tuple[str, UUID], OtpStatus] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    requests: dict[RequestKey, Request] = field(default_factory=dict)

    def admit(self, sends: Sequence[Send], *, now: datetime, limits: SendLimits) -> list[Decision]:
        state = self._read(sends, now)
        decisions = admit(sends, state, now=now, limits=limits)
        admitted = [decision.send for decision in decisions if isinstance(decision, Admitted)]
        self.requests |= {(send.organization_id, send.request_id): send.request for send in admitted}
        self.deliveries += [decision.delivery for decision in decisions if isinstance(decision, Admitted)]
        self.accounts |= {one.organization_id: state.accounts[one.organization_id] for one in admitted}
        return decisions

    def _read(self, sends: Sequence[Send], now: datetime) -> State:
        organization_ids = {send.organization_id for send in sends}
        state = State({key: deepcopy(account) for key, account in self.accounts.items() if key in organization_ids})
        state.spent = dict.fromkeys(organization_ids, 0)
        for delivery in self.deliveries:
            if delivery.create_time >= start_of_day(now) and delivery.organization_id in organization_ids:
                state.spent[delivery.organization_id] += delivery.credits
        state.otp_statuses = dict(self.otp_statuses)
        state.requests = dict(self.requests)
        for delivery in self.deliveries:
            state.answers[delivery.delivery_id] = delivery
            destination = (delivery.organization_id, delivery.destination_digest)
            recent = state.recent_sends.setdefault(destination, [])
            recent.append(RecentSend(delivery.create_time, delivery.purpose))
        return state


def summary(decision: Decision) -> tuple[object, ...]:
    """What a caller sees of a decision."""
    match decision:
        case Refused(RetryLater() as error):
            return ("wait", timedelta(seconds=error.retry_after_seconds))
        case Refused(error):
            return (type(error).__name__,)
        case Admitted() | Replayed():
            delivery = decision.delivery
            return (type(decision).__name__, delivery.ledger_sequence, delivery.balance_after, decision.low_balance)
