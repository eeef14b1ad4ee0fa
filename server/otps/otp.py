"""OTPs and their deliveries as the room sees them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from server.channels.channel import ChannelName


class OtpStatus(StrEnum):
    """Where an OTP stands. EXPIRED is never stored: it is PENDING whose time has passed."""

    PENDING = "PENDING"
    VERIFIED = "VERIFIED"
    EXPIRED = "EXPIRED"
    CANCELED = "CANCELED"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"


class DeliveryStatus(StrEnum):
    """What became of a delivery."""

    QUEUED = "QUEUED"
    SENT = "SENT"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


@dataclass(slots=True)
class Otp:
    """One challenge, without its code: that is derived when it is needed."""

    organization_id: str
    otp_id: UUID
    purpose: str
    locale: str
    destination_digest: bytes
    code_key_id: str
    code_length: int
    context_digest: bytes
    web_otp_domain: str
    metadata: dict[str, str]
    status: OtpStatus
    attempts: int
    max_attempts: int
    create_time: datetime
    expire_time: datetime
    verify_time: datetime | None = None
    verify_request_id: UUID | None = None
    to_phone: bool = False
    """Whether any of its deliveries may be to a phone."""

    def status_at(self, now: datetime) -> OtpStatus:
        """Where it stands at a moment."""
        if self.status is OtpStatus.PENDING and now >= self.expire_time:
            return OtpStatus.EXPIRED
        return self.status


@dataclass(slots=True)
class Delivery:
    """One charged send of an OTP through one channel."""

    organization_id: str
    delivery_id: UUID
    otp_id: UUID
    request_id: UUID
    request_fingerprint: bytes
    purpose: str
    channel: ChannelName
    destination_digest: bytes
    destination_sealed: bytes | None
    """None once retention has erased it."""
    masked_destination: str
    credits: int
    ledger_sequence: int
    balance_after: int
    status: DeliveryStatus
    refunded: bool
    failure_reason: str
    create_time: datetime
    areas: str = ""
    """As its target's."""


class Target(NamedTuple):
    """Where one send goes and what it costs."""

    channel: ChannelName
    credits: int
    destination: str
    """Normalised and in clear: lives in memory only until the message has left."""
    destination_digest: bytes
    destination_sealed: bytes
    masked_destination: str
    areas: str = ""
    """Where unverified credits are counted, with spaces between them: the number's country, and perhaps its prefix as a
    keyed digest. Empty for an address."""


def otp_of(row: tuple[Any, ...]) -> Otp:
    """An OTP from its columns, in the order of its fields."""
    otp = Otp(*row)
    otp.status = OtpStatus(otp.status)
    return otp


def delivery_of(row: tuple[Any, ...]) -> Delivery:
    """A delivery from its columns, in the order of its fields."""
    delivery = Delivery(*row)
    delivery.channel = ChannelName(delivery.channel)
    delivery.status = DeliveryStatus(delivery.status)
    return delivery
