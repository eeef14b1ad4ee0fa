"""Decides which sends are accepted: limits, balance, idempotency. Does no I/O: the State was read before."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from server.credits.accounts import Account, Request, RequestKey, RequestMemory
from server.errors import (
    DeadlineExceeded,
    DomainError,
    InsufficientCredits,
    OrganizationSuspended,
    OtpNotFound,
    RequestIdExpired,
    RequestIdReused,
    ResendTooSoon,
    RetryLater,
    SpendingCapReached,
    TooManySends,
)
from server.otps.otp import CLOSED, Delivery, DeliveryStatus, Otp, OtpKey, OtpRecord, OtpStatus, Recipient
from server.providers.provider import OPERATOR, Identity
from server.traces import Span

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
_NO_WAIT = timedelta()
NO_METADATA: Final = "{}"


@dataclass(frozen=True, slots=True)
class SendLimits:
    """The limits on sends; 0 switches a limit off."""

    cooldown: timedelta = timedelta(seconds=30)
    """Between two sends to one destination for one purpose. WhatsApp needs more than 6 s."""
    sends_per_destination_per_hour: int = 10
    sends_per_destination_per_day: int = 30
    sends_per_organization_per_minute: int = 60_000
    unverified_credits_per_country: int = 0
    """Unverified credits of an organization on one country's numbers in one window: the most that SMS pumping costs."""
    unverified_credits_per_prefix: int = 0
    """The same for numbers with the same prefix: bounds pumping with one number range below its country's limit."""
    unverified_window: timedelta = DAY
    memory: RequestMemory = field(default_factory=RequestMemory)
    """Which requests are not known any more: a new one that may be one of them is refused."""
    daily_credit_cap: int = 0
    """Credits that the sends of an organization may take in a day from 00:00 UTC, less what is refunded on that day."""


class RecentSend(NamedTuple):
    """A send to a destination within the last day."""

    create_time: datetime
    purpose: str


@dataclass(slots=True)
class UnverifiedCredits:
    """The credits that an organization spent on an area's numbers in one window and that are not verified."""

    window_start_time: datetime
    credits: int = 0

    def wait(self, credits: int, *, maximum: int, now: datetime, limits: SendLimits) -> timedelta:
        """Time until `credits` more fit within `maximum`; zero if they fit now. A maximum of 0 is no limit."""
        if not maximum or self.credits + credits <= maximum:
            return _NO_WAIT
        spent, end = self.credits, self.window_start_time + limits.unverified_window
        if now >= end:
            spent, end = 0, now + limits.unverified_window
        return end - now if spent + credits > maximum else _NO_WAIT

    def count(self, credits: int, *, now: datetime, limits: SendLimits) -> None:
        """Add credits; begins a new window when the current one is over."""
        if now >= self.window_start_time + limits.unverified_window:
            self.window_start_time = now
            self.credits = 0
        self.credits += credits


@dataclass(slots=True)
class Spending:
    """The price of a send to a phone, and the counters of its areas."""

    unverified: Sequence[UnverifiedCredits]
    """Of the number's country; then of its prefix by each digest key, where prefixes are counted."""
    credits: int

    def count(self, *, now: datetime, limits: SendLimits) -> None:
        """Add the credits to each area's counter."""
        for area in self.unverified:
            area.count(self.credits, now=now, limits=limits)


def check_limits(
    account: Account,
    recent: Sequence[RecentSend],
    purpose: str,
    *,
    spending: Spending | None = None,
    capped: SpendingCapReached | None = None,
    now: datetime,
    limits: SendLimits,
) -> None:
    """Raise ResendTooSoon, TooManySends or SpendingCapReached when one more send exceeds a limit.

    `recent` has the last day's sends to the destination, oldest first; `spending` is None for e-mail; `capped` is the
    refusal of a send beyond the spending cap. When several limits are exceeded, raises the one with the longest wait: a
    caller that waits for it is not refused by the others.
    """
    refusals = _organization_refusals(account, now, limits)
    if capped:
        refusals.append(capped)
    if recent:
        refusals += _destination_refusals(recent, purpose, now, limits)
    if spending:
        refusals += _area_refusals(spending, now, limits)
    if refusals:
        raise max(refusals, key=lambda refusal: refusal.retry_after_seconds)


def count_send(account: Account, *, now: datetime) -> None:
    """Count one send of the organization; begins a new window of a minute when the current one is over."""
    if now >= account.window_start_time + MINUTE:
        account.window_start_time = now
        account.window_send_count = 0
    account.window_send_count += 1


def _destination_refusals(
    recent: Sequence[RecentSend], purpose: str, now: datetime, limits: SendLimits
) -> Iterator[RetryLater]:
    earlier = [send.create_time for send in recent if send.purpose == purpose]
    if earlier and (wait := earlier[-1] + limits.cooldown - now) > _NO_WAIT:
        yield ResendTooSoon(retry_after_seconds=wait.total_seconds())
    for window, maximum, name in (
        (HOUR, limits.sends_per_destination_per_hour, "destination_hour"),
        (DAY, limits.sends_per_destination_per_day, "destination_day"),
    ):
        within = [send.create_time for send in recent if send.create_time > now - window]
        if maximum and len(within) >= maximum:
            # One more send is allowed once only maximum - 1 of them are still in the window.
            yield _too_many(within[len(within) - maximum] + window - now, name)


def _organization_refusals(account: Account, now: datetime, limits: SendLimits) -> list[RetryLater]:
    maximum = limits.sends_per_organization_per_minute
    if maximum and account.window_send_count >= maximum and now < (end := account.window_start_time + MINUTE):
        return [_too_many(end - now, "organization_minute")]
    return []


def _area_refusals(spending: Spending, now: datetime, limits: SendLimits) -> Iterator[RetryLater]:
    per_prefix = (limits.unverified_credits_per_prefix, "prefix")
    maxima = ((limits.unverified_credits_per_country, "country"), per_prefix, per_prefix)
    for area, (maximum, name) in zip(spending.unverified, maxima, strict=False):
        if (wait := area.wait(spending.credits, maximum=maximum, now=now, limits=limits)) > _NO_WAIT:
            yield _too_many(wait, name)


def _beyond_cap(credits: int, spent: int, now: datetime, limits: SendLimits) -> SpendingCapReached | None:
    """The refusal of a send that exceeds the spending cap of the day; None for one within it."""
    cap = limits.daily_credit_cap
    if not cap or spent + credits <= cap:
        return None
    wait = start_of_day(now) + DAY - now
    return SpendingCapReached(retry_after_seconds=wait.total_seconds(), daily_credit_cap=cap, spent_credits=spent)


def start_of_day(now: datetime) -> datetime:
    """00:00 UTC of the day."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _too_many(wait: timedelta, name: str) -> RetryLater:
    return TooManySends(retry_after_seconds=wait.total_seconds(), limit=name)


class SendOptions(NamedTuple):
    """What the sends of one caller have in common; validated once for all that are alike."""

    purpose: str
    locale: str
    code_length: int
    ttl: timedelta
    max_attempts: int
    web_otp_domain: str
    """As Message.web_otp_domain."""
    said: "SendOptions | None" = None
    """What the request said, before its organization's defaults; None: just this."""


class Send(NamedTuple):
    """A send to be decided: of a new OTP, or of an existing one."""

    organization_id: str
    request_id: UUID
    request_fingerprint: bytes
    delivery_id: UUID
    otp_id: UUID
    options: SendOptions
    recipient: Recipient
    code_key_id: str
    context_digest: bytes
    metadata: str
    """As JSON."""
    fallbacks_sealed: bytes | None = None
    to_phone: bool = False
    """Whether this send or one of its fallbacks is to a phone."""
    deadline: datetime | None = None
    """The call's deadline: from then on the send is refused, and nothing is charged."""
    content: str = ""
    """What the request says: its fingerprint is made of it."""
    resent: OtpRecord | None = None
    """The existing OTP that is sent again, by ResendOtp or as a fallback: it is not written, and may be closed."""
    identity: Identity = OPERATOR
    """As whom the message is sent, by the organization's settings."""
    span: Span | None = None
    """Of the call, if it is sampled."""

    @property
    def rpc(self) -> str:
        """The rpc that requested it; a fallback was requested by none, and has no fingerprint."""
        return "SendOtp" if self.resent is None else "ResendOtp"

    @property
    def request(self) -> Request:
        """What is stored of its request."""
        return Request(self.rpc, self.request_fingerprint, self.delivery_id)

    @property
    def purpose(self) -> str:
        """What the code is for."""
        return self.options.purpose

    @property
    def code_length(self) -> int:
        """Of the code, in digits."""
        return self.options.code_length


def send_again(
    otp_record: OtpRecord,
    recipient: Recipient,
    *,
    request_id: UUID,
    request_fingerprint: bytes,
    delivery_id: UUID,
    fallbacks_sealed: bytes | None = None,
    deadline: datetime | None = None,
    content: str = "",
    identity: Identity = OPERATOR,
    span: Span | None = None,
) -> Send:
    """Build a send of an existing OTP, to be decided."""
    otp = otp_record.otp
    return Send(
        organization_id=otp.organization_id,
        request_id=request_id,
        request_fingerprint=request_fingerprint,
        delivery_id=delivery_id,
        otp_id=otp.otp_id,
        options=SendOptions(
            otp.purpose,
            otp.locale,
            otp.code_length,
            otp.expire_time - otp.create_time,
            otp.max_attempts,
            otp.web_otp_domain,
        ),
        recipient=recipient,
        code_key_id=otp.code_key_id,
        context_digest=otp.context_digest,
        metadata=NO_METADATA,
        fallbacks_sealed=fallbacks_sealed,
        deadline=deadline,
        content=content,
        resent=otp_record,
        identity=identity,
        span=span,
    )


class Admitted(NamedTuple):
    """An accepted send: to be charged, recorded and sent."""

    send: Send
    ledger_sequence: int
    balance_after: int
    low_balance: bool
    create_time: datetime

    @property
    def expire_time(self) -> datetime:
        """When the code expires."""
        send = self.send
        return self.create_time + send.options.ttl if send.resent is None else send.resent.otp.expire_time

    @property
    def record(self) -> OtpRecord:
        """The OTP with its deliveries so far; the last one is this send's."""
        send = self.send
        if send.resent is not None:
            return OtpRecord(send.resent.otp, [*send.resent.deliveries, self.delivery])
        options = send.options
        otp = Otp(
            organization_id=send.organization_id,
            otp_id=send.otp_id,
            purpose=options.purpose,
            locale=options.locale,
            destination_digest=send.recipient.all_digests,
            code_key_id=send.code_key_id,
            code_length=options.code_length,
            context_digest=send.context_digest,
            web_otp_domain=options.web_otp_domain,
            metadata=json.loads(send.metadata),
            status=OtpStatus.PENDING,
            attempts=0,
            max_attempts=options.max_attempts,
            create_time=self.create_time,
            expire_time=self.expire_time,
            to_phone=send.to_phone,
        )
        return OtpRecord(otp, [self.delivery])

    @property
    def delivery(self) -> Delivery:
        """The delivery that was recorded."""
        send, recipient = self.send, self.send.recipient
        return Delivery(
            organization_id=send.organization_id,
            delivery_id=send.delivery_id,
            otp_id=send.otp_id,
            purpose=send.options.purpose,
            channel=recipient.channel,
            destination_digest=recipient.destination_digest,
            destination_sealed=recipient.destination_sealed,
            masked_destination=recipient.masked_destination,
            credits=recipient.credits,
            ledger_sequence=self.ledger_sequence,
            balance_after=self.balance_after,
            status=DeliveryStatus.QUEUED,
            refunded=False,
            failure_reason="",
            create_time=self.create_time,
            update_time=self.create_time,
            areas=recipient.areas,
            settings_version=send.identity.settings_version,
        )


class Replayed(NamedTuple):
    """A repeat of an accepted request_id: gets the first answer and changes nothing."""

    delivery: Delivery
    low_balance: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused send: nothing is written."""

    error: DomainError


Decision = Admitted | Replayed | Refused
DestinationKey = tuple[str, bytes]
AreaKey = tuple[str, str]


@dataclass(slots=True)
class State:
    """What decisions depend on, read under the accounts' locks. `admit` updates it with each accepted send."""

    accounts: dict[str, Account]
    requests: dict[RequestKey, Request] = field(default_factory=dict)
    """The accepted requests that already have the request_ids of these sends."""
    answers: dict[UUID, Delivery] = field(default_factory=dict)
    """Their deliveries, by delivery_id, unless they were removed."""
    admitted: dict[RequestKey, Admitted] = field(default_factory=dict)
    """The sends that were admitted on this state."""
    recent_sends: dict[DestinationKey, list[RecentSend]] = field(default_factory=dict)
    """The last day's sends to each destination, oldest first."""
    otp_statuses: dict[OtpKey, OtpStatus] = field(default_factory=dict)
    """The stored status of each OTP that is resent."""
    unverified: dict[AreaKey, UnverifiedCredits] = field(default_factory=dict)
    """The counter of each area of the sends to phones."""
    limits: dict[str, SendLimits] = field(default_factory=dict)
    """Of the organizations that have chosen their own."""
    spent: dict[str, int] = field(default_factory=dict)
    """The credits that the sends of the organizations with a spending cap took today, less those refunded today."""
    capped: dict[str, int] = field(default_factory=dict)
    """The spending caps beyond which sends were refused, by organization."""
    newly_low: list[Account] = field(default_factory=list)
    """The accounts whose balance fell below its threshold by these sends."""


def admit(sends: Sequence[Send], state: State, *, now: datetime, limits: SendLimits) -> list[Decision]:
    """Decide each send, in order, as if they had come one after another.

    A request_id that was accepted before, also earlier in the batch, is Replayed if its fingerprint is the same and
    refused with RequestIdReused otherwise. A new one that limits.memory may lack is refused with RequestIdExpired. An
    organization without an account has no credits. `limits` are the operator's; state.limits replace them.
    """
    own = state.limits
    if not own:
        return [decide(send, state, now, limits) for send in sends]
    return [decide(send, state, now, own.get(send.organization_id, limits)) for send in sends]


def repeat(new: Request, earlier: Request, delivery: Delivery | None, account: Account) -> Replayed | Refused:
    """Decide a request whose request_id was accepted before, with this delivery unless that was removed."""
    if (earlier.rpc, earlier.fingerprint) != (new.rpc, new.fingerprint):
        return Refused(RequestIdReused())
    if delivery is None:
        return Refused(RequestIdExpired())
    return Replayed(delivery, delivery.balance_after < account.low_balance_threshold)


def decide(send: Send, state: State, now: datetime, limits: SendLimits) -> Decision:
    """As `admit`, for one send and exactly these limits."""
    organization_id, credits = send.organization_id, send.recipient.credits
    account = state.accounts.get(organization_id)
    if account is None:
        return Refused(InsufficientCredits(required_credits=credits, available_credits=0))
    request = (organization_id, send.request_id)
    if (admitted := state.admitted.get(request)) is not None:
        return repeat(send.request, admitted.send.request, admitted.delivery, account)
    if (earlier := state.requests.get(request)) is not None:
        return repeat(send.request, earlier, state.answers.get(earlier.answer_id), account)
    if limits.memory.lacks(send.request_id, now=now):
        return Refused(RequestIdExpired())
    spending = _spending(send, state, now)
    try:
        recent = _check(send, account, state, spending, now, limits)
    except DomainError as error:
        if isinstance(error, SpendingCapReached):
            state.capped[organization_id] = error.daily_credit_cap
        return Refused(error)
    count_send(account, now=now)
    if spending:
        spending.count(now=now, limits=limits)
    if limits.daily_credit_cap:
        state.spent[organization_id] += credits
    # A send that costs nothing, of a test organization, has no ledger entry.
    if credits and account.apply(-credits, now=now):
        state.newly_low.append(account)
    recent.append(RecentSend(now, send.options.purpose))
    admitted = Admitted(send, account.last_sequence, account.available_credits, account.low_balance, now)
    state.admitted[request] = admitted
    return admitted


def _spending(send: Send, state: State, now: datetime) -> Spending | None:
    """The price and counters of a send to a phone; None for e-mail."""
    recipient = send.recipient
    if not recipient.areas:
        return None
    counters, unverified = [], state.unverified
    for area in recipient.areas.split():
        key = (send.organization_id, area)
        counter = unverified.get(key)
        if counter is None:
            counter = unverified[key] = UnverifiedCredits(now)
        counters.append(counter)
    return Spending(counters, recipient.credits)


def _check(
    send: Send, account: Account, state: State, spending: Spending | None, now: datetime, limits: SendLimits
) -> list[RecentSend]:
    """The destination's recent sends, to which an accepted send is appended. Raises the error of a refused send."""
    recipient = send.recipient
    if send.deadline is not None and now >= send.deadline:
        raise DeadlineExceeded
    if account.suspend_time is not None:
        raise OrganizationSuspended
    if send.resent is not None:
        otp = send.resent.otp
        status = state.otp_statuses.get((send.organization_id, send.otp_id))
        if status is None:
            raise OtpNotFound
        otp.status = status
        if closed := CLOSED.get(otp.status_at(now)):
            raise closed
    if account.available_credits < recipient.credits:
        raise InsufficientCredits(required_credits=recipient.credits, available_credits=account.available_credits)
    recent = state.recent_sends.setdefault((send.organization_id, recipient.destination_digest), [])
    capped = None
    if limits.daily_credit_cap:
        capped = _beyond_cap(recipient.credits, state.spent[send.organization_id], now, limits)
    check_limits(account, recent, send.options.purpose, spending=spending, capped=capped, now=now, limits=limits)
    return recent
