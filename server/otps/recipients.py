"""Requests to send as callers made them, and their destinations resolved to recipients.

Resolved means parsed, allowed, priced and encrypted, for a send and its fallbacks.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple
from uuid import UUID

import structlog
from cryptography.exceptions import InvalidTag

from server.errors import ChannelNotConfigured, DestinationBlocked, InvalidDestination
from server.otps.admission import SendOptions
from server.otps.crypto import Crypto
from server.otps.destinations import PARSERS, PHONE_CHANNELS, Destination, parse_phone
from server.otps.effective_settings import EffectiveSettings
from server.otps.magic_destinations import ENDINGS, Ending
from server.otps.otp import Recipient
from server.otps.sms_pumping import ALL_AREAS, AreaPolicy, country_of
from server.providers.provider import Channel
from server.traces import Span

_log = structlog.get_logger(__name__)


class Fallback(NamedTuple):
    """A destination to try when the one before it did not work; stored encrypted, as a JSON array."""

    channel: Channel
    destination: str
    """Normalized."""
    after_seconds: float | None = None
    """How long after the delivery before it was accepted it is sent also without a failure; None: never."""


class RawDestination(NamedTuple):
    """A destination as the caller wrote it."""

    channel: Channel
    text: str
    field: str
    """Its path in the request, such as `destination.email`, for InvalidDestination."""
    after_seconds: float | None = None
    """Of a fallback; see Fallback."""

    @property
    def said(self) -> tuple[str, ...]:
        """What it adds to the content of a request."""
        delay = () if self.after_seconds is None else (str(self.after_seconds),)
        return (self.channel.value, self.text, *delay)


class SendRequest(NamedTuple):
    """A request to send a new OTP."""

    organization_id: str
    request_id: UUID
    destination: RawDestination
    options: SendOptions
    context: str = ""
    metadata: Mapping[str, str] = {}
    fallbacks: Sequence[RawDestination] = ()
    deadline: datetime | None = None
    span: Span | None = None

    @property
    def rpc(self) -> str:
        """The rpc that was called."""
        return "SendOtp"

    @property
    def content(self) -> str:
        """What the request says, as its caller wrote it: a repeat is recognized by it whatever the settings are now.

        It never changes for the same request, in any version: new fields are added only when they are set.
        """
        metadata, to = self.metadata, self.destination
        fields = [_identity(self.options.said or self.options), to.channel, to.text, self.context, str(len(metadata))]
        if metadata:
            fields += chain.from_iterable(sorted(metadata.items()))
        for other in self.fallbacks:
            fields += other.said
        return "\0".join(fields)  # no text has a control character


class ResendRequest(NamedTuple):
    """A request to send an existing OTP once more."""

    organization_id: str
    request_id: UUID
    otp_id: UUID
    destination: RawDestination | None
    """None: the destination of the last delivery."""
    deadline: datetime | None = None
    span: Span | None = None

    @property
    def rpc(self) -> str:
        """The rpc that was called."""
        return "ResendOtp"

    @property
    def content(self) -> str:
        """What the request says, as its caller wrote it."""
        to = self.destination
        return f"{self.otp_id}\0{to.channel}\0{to.text}" if to else str(self.otp_id)


@lru_cache(maxsize=1024)
def _identity(options: SendOptions) -> str:
    purpose, locale, code_length, ttl, max_attempts, web_otp_domain, _ = options
    return f"{purpose}\0{locale}\0{code_length}\0{ttl.total_seconds()}\0{max_attempts}\0{web_otp_domain}"


class RecipientResolver:
    """Resolves destinations to recipients, and encrypts and decrypts fallbacks."""

    def __init__(self, crypto: Crypto, channel_credits: Mapping[Channel, int], areas: AreaPolicy = ALL_AREAS) -> None:
        """`channel_credits` has the price in credits of each configured channel, and of no other."""
        self._crypto = crypto
        self._channel_credits = channel_credits
        self.areas = areas
        """The operator's."""
        self._parsers = dict(PARSERS)
        if areas.extra_prefixes:
            self._parsers |= dict.fromkeys(PHONE_CHANNELS, partial(parse_phone, extra_prefixes=areas.extra_prefixes))

    def resolve(
        self, organization_id: str, raw: RawDestination, settings: EffectiveSettings | None = None
    ) -> Recipient:
        """Validate a destination and build its recipient. Without `settings` the operator's areas count.

        Raises ChannelNotConfigured, InvalidDestination or DestinationBlocked.
        """
        if settings is not None and settings.identity.is_test:
            return self._resolve_test(organization_id, raw)
        credits = self._channel_credits.get(raw.channel)
        if credits is None:
            raise ChannelNotConfigured(channel=raw.channel.value)
        destination = self.parse(raw)
        if not (self.areas if settings is None else settings.areas).allows(destination):
            raise DestinationBlocked(channel=raw.channel.value)
        normalized = destination.normalized
        return Recipient(
            raw.channel,
            credits,
            normalized,
            self._crypto.digest(normalized),
            self._crypto.seal(normalized, organization_id=organization_id),
            destination.masked,
            self._areas_of(destination),
            self._crypto.other_digest(normalized),
        )

    def _resolve_test(self, organization_id: str, raw: RawDestination) -> Recipient:
        """The recipient of a test organization: it costs nothing, and counts in no area."""
        destination = self.parse(raw)
        normalized = destination.normalized
        if ENDINGS.get(normalized) is Ending.FRAUD:
            raise DestinationBlocked(channel=raw.channel.value)
        return Recipient(
            raw.channel,
            0,
            normalized,
            self._crypto.digest(normalized),
            self._crypto.seal(normalized, organization_id=organization_id),
            destination.masked,
            "",
            self._crypto.other_digest(normalized),
        )

    def parse(self, raw: RawDestination) -> Destination:
        """Validate a destination, whether or not it may be sent to. Raises InvalidDestination."""
        try:
            return self._parsers[raw.channel](raw.text)
        except ValueError:
            raise InvalidDestination(field=raw.field) from None

    def default_fallbacks(
        self, organization_id: str, destination: RawDestination, settings: EffectiveSettings
    ) -> list[Fallback]:
        """The fallbacks that an organization has chosen for sends to a phone without any: those that can be sent."""
        if not settings.fallbacks or destination.channel not in PHONE_CHANNELS:
            return []
        found: list[Fallback] = []
        for chosen in settings.fallbacks:
            if chosen.channel is destination.channel:
                continue
            raw = destination._replace(channel=chosen.channel, after_seconds=chosen.after_seconds)
            with suppress(ChannelNotConfigured, DestinationBlocked):
                found += self.validate_fallbacks(organization_id, [raw], settings)
        return found

    def validate_fallbacks(
        self, organization_id: str, fallbacks: Sequence[RawDestination], settings: EffectiveSettings | None = None
    ) -> list[Fallback]:
        """Validate fallbacks, in order. Raises what `resolve` raises."""
        recipients = [self.resolve(organization_id, fallback, settings) for fallback in fallbacks]
        return [
            Fallback(to.channel, to.destination, raw.after_seconds)
            for to, raw in zip(recipients, fallbacks, strict=True)
        ]

    def seal_fallbacks(self, organization_id: str, fallbacks: Sequence[Fallback]) -> bytes | None:
        """Encrypt fallbacks that were validated before; None without fallbacks."""
        return self._crypto.seal(json.dumps(fallbacks), organization_id=organization_id) if fallbacks else None

    def open_fallbacks(self, organization_id: str, sealed: bytes | None) -> list[Fallback]:
        """Decrypt fallbacks, in order; empty when no key of the key ring decrypts them, which is logged."""
        if sealed is None:
            return []
        try:
            plain = self._crypto.unseal(sealed, organization_id=organization_id)
        except (KeyError, InvalidTag, ValueError):
            _log.error("no key decrypts a delivery's fallbacks")
            return []
        return [Fallback(Channel(channel), *rest) for channel, *rest in json.loads(plain)]

    def _areas_of(self, destination: Destination) -> str:
        """The value of Recipient.areas.

        A prefix is stored as its digest: its digits and the masked number together would leave few numbers to try.
        During a rotation of digest keys it is an area by each key, so that either has counted every send.
        """
        country, digits = country_of(destination), self.areas.prefix_digits
        if not country or not digits:
            return country
        prefix = destination.normalized[: 1 + digits]
        return f"{country} {self._crypto.digest(prefix).hex()} {self._crypto.other_digest(prefix).hex()}".rstrip()
