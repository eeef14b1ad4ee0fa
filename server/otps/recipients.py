"""Requests to send as callers made them, and their destinations resolved to recipients.

Resolved means parsed, allowed, priced and encrypted, for a send and its fallbacks.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import structlog
from cryptography.exceptions import InvalidTag

from server.errors import ChannelNotConfigured, DestinationBlocked, InvalidDestination
from server.otps.crypto import Crypto
from server.otps.destinations import PARSERS, Destination
from server.otps.otp import Recipient
from server.otps.sms_pumping import ALL_AREAS, AreaPolicy, country_of
from server.providers.provider import Channel

_log = structlog.get_logger(__name__)

Fallback = tuple[Channel, str]
"""A channel and its normalized destination."""


class RawDestination(NamedTuple):
    """A destination as the caller wrote it."""

    channel: Channel
    text: str
    field: str
    """Its path in the request, such as `destination.email`, for InvalidDestination."""


class SendRequest(NamedTuple):
    """A request to send a new OTP."""

    organization_id: str
    request_id: UUID
    serialized: Callable[[], bytes]
    """Returns the serialized request, for a fingerprint of version 1."""
    destination: RawDestination
    fallbacks: Sequence[RawDestination]
    purpose: str
    locale: str
    code_length: int
    ttl: timedelta
    max_attempts: int
    context: str
    web_otp_domain: str
    metadata: dict[str, str]
    deadline: datetime | None = None

    def content(self) -> str:
        """All that the request says besides its destination, for its fingerprint. No text has a control character.

        How the destination is spelled does not matter; how fallbacks are does.
        """
        ttl, fallbacks = self.ttl, self.fallbacks
        parts = [
            self.destination.channel,
            self.purpose,
            self.locale,
            self.context,
            self.web_otp_domain,
            f"{self.code_length} {ttl.seconds} {ttl.microseconds} {self.max_attempts} {len(fallbacks)}",
        ]
        for channel, text, _ in fallbacks:
            parts += channel, text
        if self.metadata:
            for pair in sorted(self.metadata.items()):
                parts += pair
        return "\0".join(parts)


class ResendRequest(NamedTuple):
    """A request to send an existing OTP once more."""

    organization_id: str
    request_id: UUID
    serialized: Callable[[], bytes]
    """As SendRequest.serialized."""
    otp_id: UUID
    destination: RawDestination | None
    """None: the destination of the last delivery."""
    deadline: datetime | None = None

    def content(self, recipient: Recipient) -> str:
        """All that the request says, for its fingerprint; the recipient is that of its destination."""
        destination = f"{recipient.channel} {recipient.destination}" if self.destination else ""
        return f"resend {self.otp_id} {destination}"


class RecipientResolver:
    """Resolves destinations to recipients, and encrypts and decrypts fallbacks."""

    def __init__(self, crypto: Crypto, channel_credits: Mapping[Channel, int], areas: AreaPolicy = ALL_AREAS) -> None:
        """`channel_credits` has the price in credits of each configured channel, and of no other."""
        self._crypto = crypto
        self._channel_credits = channel_credits
        self._areas = areas

    def resolve(self, organization_id: str, raw: RawDestination) -> Recipient:
        """Validate a destination and build its recipient.

        Raises ChannelNotConfigured, InvalidDestination or DestinationBlocked.
        """
        credits = self._channel_credits.get(raw.channel)
        if credits is None:
            raise ChannelNotConfigured(channel=raw.channel.value)
        try:
            destination = PARSERS[raw.channel](raw.text)
        except ValueError:
            raise InvalidDestination(field=raw.field) from None
        if not self._areas.allows(destination):
            raise DestinationBlocked(channel=raw.channel.value)
        return Recipient(
            channel=raw.channel,
            credits=credits,
            destination=destination.normalized,
            destination_digest=self._crypto.digest(destination.normalized),
            other_digest=self._crypto.other_digest(destination.normalized),
            destination_sealed=self._crypto.seal(destination.normalized, organization_id=organization_id),
            masked_destination=destination.masked,
            areas=self._areas_of(destination),
        )

    def seal_fallbacks(self, organization_id: str, fallbacks: Sequence[RawDestination]) -> bytes | None:
        """Validate and encrypt fallbacks, in order; None without fallbacks. Raises what `resolve` raises."""
        if not fallbacks:
            return None
        recipients = [self.resolve(organization_id, fallback) for fallback in fallbacks]
        return self.reseal_fallbacks(organization_id, [(to.channel, to.destination) for to in recipients])

    def reseal_fallbacks(self, organization_id: str, fallbacks: Sequence[Fallback]) -> bytes | None:
        """Encrypt fallbacks that were validated before; None without fallbacks."""
        if not fallbacks:
            return None
        return self._crypto.seal(json.dumps(fallbacks), organization_id=organization_id)

    def open_fallbacks(self, organization_id: str, sealed: bytes | None) -> list[Fallback]:
        """Decrypt fallbacks, in order; empty when no key of the key ring decrypts them, which is logged."""
        if sealed is None:
            return []
        try:
            plain = self._crypto.unseal(sealed, organization_id=organization_id)
        except (KeyError, InvalidTag, ValueError):
            _log.error("no key decrypts a delivery's fallbacks")
            return []
        return [(Channel(channel), destination) for channel, destination in json.loads(plain)]

    def _areas_of(self, destination: Destination) -> str:
        """The value of Recipient.areas.

        A prefix is stored as its digest: its digits and the masked number together would leave few numbers to try.
        During a rotation of digest keys it is an area by each key, so that either has counted every send.
        """
        country, digits = country_of(destination), self._areas.prefix_digits
        if not country or not digits:
            return country
        prefix = destination.normalized[: 1 + digits]
        return f"{country} {self._crypto.digest(prefix).hex()} {self._crypto.other_digest(prefix).hex()}".rstrip()
