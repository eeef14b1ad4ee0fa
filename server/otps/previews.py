"""Previews: what a send would do if it came now."""

from dataclasses import dataclass, replace
from datetime import datetime

from server.errors import DomainError
from server.otps.admission import Decision, Refused, Replayed, Send
from server.providers.provider import Channel, Message
from server.providers.templates import Rendered, Templates


@dataclass(frozen=True, slots=True)
class Preview:
    """What a send would do if it came now."""

    channel: Channel
    credits: int = 0
    """The price: 0 when the send is refused before its price is known, or its request_id was accepted before."""
    masked_destination: str = ""
    """Empty for a destination that is not valid."""
    segments: int = 0
    """SMS segments of the message; 0 for other channels."""
    autofill: bool = False
    """Whether the SMS has the line by which phones and browsers fill the code in."""
    refusal: DomainError | None = None


def decided(preview: Preview, decision: Decision) -> Preview:
    """The preview of a send that was decided."""
    if isinstance(decision, Refused):
        return replace(preview, refusal=decision.error)
    return replace(preview, credits=0) if isinstance(decision, Replayed) else preview


def render(send: Send, templates: Templates, *, now: datetime) -> Rendered:
    """The message with a code of zeros: every code of this length takes as many segments."""
    options = send.options
    message = Message(
        delivery_id=send.delivery_id,
        channel=send.recipient.channel,
        destination=send.recipient.destination,
        code="0" * options.code_length,
        purpose=options.purpose,
        locale=options.locale,
        expire_time=now + options.ttl,
        lease_expire_time=now + options.ttl,
        web_otp_domain=options.web_otp_domain,
        reference="",
        identity=send.identity,
    )
    return templates.render(message, now=now)
