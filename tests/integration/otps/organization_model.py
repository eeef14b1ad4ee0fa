"""A model of one organization, as simple as possible: dictionaries, lists and the models of the unit tests."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from server.otps.admission import Send, SendLimits
from server.otps.guess_policy import GuessLimits
from server.otps.otp import DeliveryStatus, Otp, OtpStatus
from server.providers.provider import Channel, OutcomeKind
from tests.unit.otps.guess_model import GuessModel
from tests.unit.otps.send_model import SendModel


@dataclass
class ModelDelivery:
    """One charged send."""

    delivery_id: UUID
    otp_id: UUID
    channel: Channel
    credits: int
    due_time: datetime | None
    """When a replica may take it over; None once it has a final status."""
    status: DeliveryStatus = DeliveryStatus.QUEUED
    refunded: bool = False


class OrganizationModel:
    """One organization."""

    def __init__(self, send_limits: SendLimits, guess_limits: GuessLimits, low_balance_threshold: int) -> None:
        self.sends = SendModel(0, low_balance_threshold, send_limits, {})
        self.guesses = GuessModel({}, guess_limits)
        self.ledger: list[int] = []
        self.deliveries: list[ModelDelivery] = []

    def adjust(self, credits: int) -> bool:
        """Whether the balance allowed it."""
        if self.sends.credits + credits < 0:
            return False
        self._add_entry(credits)
        self.sends.credits += credits
        return True

    def send(self, send: Send, now: datetime) -> tuple[object, ...]:
        if send.resent:
            self.sends.otp_statuses[send.otp_id.int], _ = self.otp(send.otp_id, now)
        kind, *rest = self.sends.decide(send, now)
        if kind == "Admitted":
            self._add_entry(-send.recipient.credits)
        # The sequence counts top-ups and refunds too: the ledger's comparison covers it.
        return (kind, *(rest[1:] if kind in {"Admitted", "Replayed"} else rest))

    def remember(self, delivery: ModelDelivery, otp: Otp) -> None:
        self.deliveries.append(delivery)
        self.guesses.otps.setdefault(otp.otp_id.int, otp)

    def deliveries_of(self, otp_id: UUID) -> list[ModelDelivery]:
        return [delivery for delivery in self.deliveries if delivery.otp_id == otp_id]

    def otp(self, otp_id: UUID, now: datetime) -> tuple[OtpStatus, int]:
        """Its status and the attempts that it took."""
        otp = self.guesses.otps[otp_id.int]
        attempts = sum(one is otp for _, one in self.guesses.wrong)
        if otp_id.int in self.guesses.right:
            return OtpStatus.VERIFIED, attempts
        if attempts == otp.max_attempts:
            return OtpStatus.ATTEMPTS_EXHAUSTED, attempts
        if otp.status is OtpStatus.CANCELED:
            return OtpStatus.CANCELED, attempts
        return (OtpStatus.EXPIRED if now >= otp.expire_time else OtpStatus.PENDING), attempts

    def cancel(self, otp_id: UUID, now: datetime) -> bool:
        """Whether it is canceled now."""
        status, _ = self.otp(otp_id, now)
        if status is OtpStatus.PENDING:
            self.guesses.otps[otp_id.int].status = OtpStatus.CANCELED
        return status in {OtpStatus.PENDING, OtpStatus.CANCELED}

    def record_outcome(
        self, delivery: ModelDelivery, kind: OutcomeKind, now: datetime, *, held_until: datetime, attempts: int
    ) -> None:
        if delivery.status is not DeliveryStatus.QUEUED:
            return
        sent = {
            OutcomeKind.ACCEPTED: DeliveryStatus.SENT,
            OutcomeKind.DELIVERED: DeliveryStatus.DELIVERED,
            OutcomeKind.UNKNOWN: DeliveryStatus.UNKNOWN,
        }
        if kind in sent:
            self._finish(delivery, sent[kind])
        elif delivery.due_time == held_until:
            retry = now + timedelta(seconds=min(2**attempts, 30))
            expire_time = self.guesses.otps[delivery.otp_id.int].expire_time
            if kind is OutcomeKind.NOT_SENT and retry < expire_time:
                delivery.due_time = retry
            else:
                self._finish(delivery, DeliveryStatus.FAILED, refund=True)

    def report(self, delivery: ModelDelivery, status: DeliveryStatus, *, refund_accepted: bool) -> None:
        order = [DeliveryStatus.QUEUED, DeliveryStatus.UNKNOWN, DeliveryStatus.SENT, DeliveryStatus.DELIVERED]
        if delivery.status is DeliveryStatus.FAILED or delivery.status is DeliveryStatus.DELIVERED:
            return
        if status is DeliveryStatus.FAILED:
            refund = refund_accepted or delivery.status is DeliveryStatus.UNKNOWN
            self._finish(delivery, status, refund=refund)
        elif order.index(status) > order.index(delivery.status):
            self._finish(delivery, status)

    def unverified_credits(self, now: datetime) -> int:
        """The credits spent on phones whose codes are not verified."""
        return sum(
            delivery.credits
            for delivery in self.deliveries
            if delivery.channel is not Channel.EMAIL
            and not delivery.refunded
            and self.otp(delivery.otp_id, now)[0] is not OtpStatus.VERIFIED
        )

    def take_over(self, now: datetime, lease_expire_time: datetime) -> set[UUID]:
        due = [one for one in self.deliveries if one.due_time is not None and one.due_time <= now]
        for delivery in due:
            delivery.due_time = lease_expire_time
        return {delivery.delivery_id for delivery in due}

    def _finish(self, delivery: ModelDelivery, status: DeliveryStatus, *, refund: bool = False) -> None:
        delivery.status, delivery.due_time, delivery.refunded = status, None, refund
        if refund:
            self._add_entry(delivery.credits)
            self.sends.credits += delivery.credits

    def _add_entry(self, credits: int) -> None:
        self.ledger.append(credits)
