"""An errand: one delivery on its way to its channel."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from server.otps.admission import Admitted
from server.otps.otp import Delivery, Otp


@dataclass(frozen=True, slots=True)
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


def errand_of(admitted: Admitted, *, lease: timedelta) -> Errand:
    """The errand that an accepted send is; `lease` is the one that it was accepted with."""
    send, delivery = admitted.send, admitted.delivery
    accepted = delivery.create_time
    return Errand(send.otp, delivery, send.target.destination, accepted + lease, accepted, send.fallbacks_sealed)
