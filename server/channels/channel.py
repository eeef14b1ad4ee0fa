"""What every provider looks like from inside: one message in, one of five outcomes out."""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol
from uuid import UUID


class ChannelName(StrEnum):
    """The three ways that a code can reach a person."""

    EMAIL = "EMAIL"
    WHATSAPP = "WHATSAPP"
    SMS = "SMS"


class OutcomeKind(StrEnum):
    """What became of one provider call, as far as money is concerned."""

    ACCEPTED = "ACCEPTED"
    """The provider took the message: it stays charged."""
    REJECTED_DESTINATION = "REJECTED_DESTINATION"
    """Definitely not sent, and this destination never will be: refunded."""
    REJECTED_CONFIGURATION = "REJECTED_CONFIGURATION"
    """Definitely not sent, and nothing is until an operator mends the configuration: the next provider, or refunded."""
    NOT_SENT = "NOT_SENT"
    """Definitely not sent, but a later try may work: retried until the OTP expires."""
    UNKNOWN = "UNKNOWN"
    """May have been sent: never sent again blindly, stays charged until a delivery report settles it."""


class Message(NamedTuple):
    """One code on its way to one destination. Never logged: it holds the code and the destination.

    What each delivery makes anew is a tuple, as frozen as a dataclass and made in a quarter of its time.
    """

    delivery_id: UUID
    channel: ChannelName
    destination: str
    """Normalised: an e-mail address, or an E.164 number with its plus sign."""
    code: str
    purpose: str
    locale: str
    """A BCP 47 tag; empty for the default."""
    expire_time: datetime
    """After this the code is worthless and must not be sent."""
    web_otp_domain: str
    """Adds the `@domain #code` line to a text message; empty for none."""
    reference: str
    """What delivery reports name it by: `<organization_id>/<delivery_id in hexadecimal>`, at most 97 characters."""


class Outcome(NamedTuple):
    """What became of one provider call. Holds nothing of the provider's text, which may echo code or number."""

    kind: OutcomeKind
    provider: str
    """The provider's short name, as in the settings: `smtp`, `whatsapp`, `twilio`, `vonage`, `console`."""
    provider_message_id: str = ""
    failure_reason: str = ""
    """A stable word for operators and callers, such as `twilio_21211`; never the provider's own sentence."""
    retry_after_seconds: float | None = None


class Channel(Protocol):
    """A provider of one channel. Safe to call from many tasks at once."""

    provider: str

    async def deliver(self, message: Message) -> Outcome:
        """Hand the message over and say what became of it.

        Never raises for anything that the provider or the network does; takes no longer than its own timeout,
        which is shorter than the delivery's lease.
        """
        ...

    async def close(self) -> None:
        """Let go of connections; deliver is not called again."""
        ...
