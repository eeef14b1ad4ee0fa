"""An errand: one delivery on its way to its channel."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from server.channels.channel import Message
from server.otps.admission import Admitted
from server.otps.otp import Delivery, Otp

DeliveryKey = tuple[str, UUID]


@dataclass(slots=True)
class Errand:
    """A delivery whose lease is ours: send it, and say what became of it, before others may."""

    otp: Otp
    delivery: Delivery
    destination: str
    """In clear; empty when the key that opens it has left the ring."""
    lease_expire_time: datetime
    """Exactly as in the outbox: while it stands there, nobody else has taken the delivery over."""
    read_time: datetime
    """As of when the OTP's status is known."""
    fallbacks_sealed: bytes | None = None
    attempts: int = 0

    @property
    def key(self) -> DeliveryKey:
        """Which delivery it is."""
        return self.delivery.organization_id, self.delivery.delivery_id

    def message(self, code: str) -> Message:
        """What a channel is given."""
        otp, delivery = self.otp, self.delivery
        return Message(
            delivery_id=delivery.delivery_id,
            channel=delivery.channel,
            destination=self.destination,
            code=code,
            purpose=otp.purpose,
            locale=otp.locale,
            expire_time=otp.expire_time,
            web_otp_domain=otp.web_otp_domain,
            reference=f"{delivery.organization_id}/{delivery.delivery_id.hex}",
        )


def errand_of(admitted: Admitted, *, lease: timedelta) -> Errand:
    """The errand that an accepted send is; `lease` is the one that it was accepted with."""
    send, delivery = admitted.send, admitted.delivery
    accepted = delivery.create_time
    return Errand(send.otp, delivery, send.target.destination, accepted + lease, accepted, send.fallbacks_sealed)
