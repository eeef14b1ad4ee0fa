"""An errand: one delivery on its way to its channel."""

from dataclasses import dataclass
from datetime import datetime

from server.otps.admission import Admitted
from server.otps.otp import Delivery, Otp


@dataclass(frozen=True, slots=True)
class Errand:
    """A delivery whose lease is ours: send it, and say what became of it, before others may."""

    otp: Otp
    delivery: Delivery
    destination: str
    lease_expire_time: datetime
    fallbacks_sealed: bytes | None = None
    attempts: int = 0


def errand_of(admitted: Admitted, *, lease_expire_time: datetime) -> Errand:
    """The errand that an accepted send is."""
    send = admitted.send
    return Errand(send.otp, admitted.delivery, send.target.destination, lease_expire_time, send.fallbacks_sealed)
