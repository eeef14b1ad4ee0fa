"""The Provider protocol: a provider gets a Message and returns an Outcome of one of five kinds, about one thing."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, Protocol
from uuid import UUID


class Channel(StrEnum):
    """The channels that codes are sent by. "Adding things" in docs/architecture.md says what a new one needs."""

    EMAIL = "EMAIL"
    WHATSAPP = "WHATSAPP"
    SMS = "SMS"

    @property
    def field(self) -> str:
        """Its name in lower case: of its field in pulsa.otp.v1.Destination, and of the setting of its providers."""
        return self.value.lower()


class OutcomeKind(StrEnum):
    """The result of a provider call, as far as charging and retries depend on it."""

    ACCEPTED = "ACCEPTED"
    """The provider accepted the message: stays charged."""
    DELIVERED = "DELIVERED"
    """It has arrived, which only a message of a test organization tells at once: there is no provider."""
    REJECTED_DESTINATION = "REJECTED_DESTINATION"
    """Definitely not sent, and never will be to this destination: refunded."""
    REJECTED_CONFIGURATION = "REJECTED_CONFIGURATION"
    """Definitely not sent, and this provider refuses a repeat too: next provider, or refunded."""
    NOT_SENT = "NOT_SENT"
    """Definitely not sent, but a retry may work: retried until the OTP expires."""
    UNKNOWN = "UNKNOWN"
    """May have been sent: never retried, and stays charged unless a delivery report says that it failed."""


class Subject(StrEnum):
    """What an outcome is about. Only the last two can open the circuit breaker: the others concern few messages."""

    DESTINATION = "this destination"
    ROUTE = "this sender and route"
    """The sender in the destination's country, the template, or the content: other messages may go."""
    SESSION = "this session"
    """One connection to the relay, or one too many."""
    ACCOUNT = "our account"
    PROVIDER = "the provider"


class Verdict(NamedTuple):
    """What a provider's code means."""

    kind: OutcomeKind
    about: Subject
    source: str
    """The URL of the page that documents the code."""


def verdicts(kind: OutcomeKind, about: Subject, *codes: int, source: str) -> dict[str, Verdict]:
    """The verdicts of codes that mean the same; `{code}` in `source` becomes the code."""
    return {str(code): Verdict(kind, about, source.format(code=code)) for code in codes}


class Identity(NamedTuple):
    """As whom an organization's messages are sent, by one version of its settings."""

    settings_version: int = 0
    """0: the organization has chosen none."""
    brand_name: str = ""
    """At the beginning of an SMS and an e-mail; empty: the operator's own texts."""
    email_sender_name: str = ""
    """Of the From header; empty: the provider's setting."""
    email_reply_to: str = ""
    """An ASCII address; empty: the provider's setting."""
    sender_ids: Mapping[tuple[Channel, str], str] = {}
    """By channel and country; an empty country: every other one."""
    is_test: bool = False
    """Whether no message goes to a provider."""

    def sender_id(self, channel: Channel, country: str) -> str:
        """The sender of messages to a country; empty: the provider's setting."""
        ids = self.sender_ids
        return (ids.get((channel, country)) or ids.get((channel, ""), "")) if ids else ""


OPERATOR: Final = Identity()
"""Of an organization that has chosen nothing."""


class Message(NamedTuple):
    """One message to one destination. Never logged: it holds the code and the destination.

    A NamedTuple, as one is created for each delivery: that takes a quarter of the time of a frozen dataclass.
    """

    delivery_id: UUID
    channel: Channel
    destination: str
    """Normalized: an e-mail address, or an E.164 number with its plus sign."""
    code: str
    purpose: str
    locale: str
    """A BCP 47 tag; empty for the default locale."""
    expire_time: datetime
    """From then on the code is refused, and must not be sent."""
    lease_expire_time: datetime
    """From then on another replica may send it."""
    web_otp_domain: str
    """The domain of the `@domain #code` line of an SMS, or `#` and the hash of an Android app; empty: no such line."""
    reference: str
    """Identifies it in delivery reports: `<organization_id>/<delivery_id in hexadecimal>`, at most 97 characters."""
    identity: Identity = OPERATOR
    sender_id: str = ""
    """Who it comes from; empty: the provider's setting."""


class Outcome(NamedTuple):
    """The result of a provider call, without the provider's text, which may quote the code or the destination."""

    kind: OutcomeKind
    provider: str
    """The provider's name, as in the settings: `smtp`, `whatsapp`, `twilio`, `vonage`, `console`."""
    provider_message_id: str = ""
    failure_reason: str = ""
    """A stable identifier for operators and callers, such as `twilio_21211`; empty for ACCEPTED."""
    retry_after_seconds: float | None = None
    about: Subject = Subject.PROVIDER

    @property
    def identifiers(self) -> Mapping[str, str]:
        """What a trace tells of it."""
        reason = {"pulsa.failure_reason": self.failure_reason} if self.failure_reason else {}
        return {"pulsa.outcome": self.kind.value, **reason}


class Provider(Protocol):
    """A provider of one channel. Its methods may be called from many tasks at once."""

    name: str
    """Its name in settings, outcomes, logs and metrics."""

    async def deliver(self, message: Message) -> Outcome:
        """Send the message.

        Raises nothing for a failure of the provider or the network. Returns within the provider's timeout, which is
        shorter than the delivery's lease.
        """
        ...

    async def close(self) -> None:
        """Close the connections. `deliver` is not called afterwards."""
        ...
