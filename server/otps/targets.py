"""Where sends go: destinations parsed, priced and sealed, and the fallbacks that a send still has."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import structlog
from cryptography.exceptions import InvalidTag

from server.channels.channel import ChannelName
from server.channels.destinations import Destination, parse_email, parse_phone
from server.errors import ChannelNotConfigured, DestinationBlocked, InvalidDestination
from server.ids import new_id
from server.otps.admission import Send
from server.otps.errands import Errand
from server.otps.otp import Target
from server.otps.pumping import EVERYBODY, Served, country_of
from server.otps.vault import Vault

_log = structlog.get_logger(__name__)


class Address(NamedTuple):
    """A destination as the caller wrote it."""

    channel: ChannelName
    text: str
    field: str
    """Where it stands in the request, for the error that says it is wrong."""


class Targets:
    """Makes targets of addresses."""

    def __init__(self, vault: Vault, channel_credits: Mapping[ChannelName, int], served: Served = EVERYBODY) -> None:
        """`channel_credits` has the price of every channel that is configured, and of no other."""
        self._vault = vault
        self._channel_credits = channel_credits
        self._served = served

    def price(self, channel: ChannelName) -> int:
        """What a send costs in credits. Raises ChannelNotConfigured."""
        credits = self._channel_credits.get(channel)
        if credits is None:
            raise ChannelNotConfigured(channel=channel.value)
        return credits

    def target(self, organization_id: str, address: Address) -> Target:
        """The destination as it is sent to and recorded.

        Raises ChannelNotConfigured, InvalidDestination or DestinationBlocked.
        """
        credits = self.price(address.channel)
        try:
            destination = _parse(address.channel, address.text)
        except ValueError:
            raise InvalidDestination(field=address.field) from None
        if not self._served.serves(destination):
            raise DestinationBlocked(channel=address.channel.value)
        return Target(
            channel=address.channel,
            credits=credits,
            destination=destination.normalized,
            destination_digest=self._vault.digest(destination.normalized),
            destination_sealed=self._vault.seal(destination.normalized, organization_id=organization_id),
            masked_destination=destination.masked,
            areas=self._areas(destination),
        )

    def _areas(self, destination: Destination) -> str:
        """Where the credits of sends to it are counted until they are verified.

        A prefix is named by its digest: beside the masked number its digits would leave few numbers to try.
        """
        country, digits = country_of(destination), self._served.prefix_digits
        if not country or not digits:
            return country
        return f"{country} {self._vault.digest(destination.normalized[: 1 + digits]).hex()}"

    def seal_fallbacks(self, organization_id: str, addresses: Sequence[Address]) -> bytes | None:
        """The addresses checked and sealed, in order; None for none. Raises as `target` does."""
        if not addresses:
            return None
        targets = [self.target(organization_id, address) for address in addresses]
        return self._seal(organization_id, [(target.channel, target.destination) for target in targets])

    def alternatives(self, errand: Errand) -> Iterator[Send]:
        """What may be sent instead of a delivery that failed, in order, each with the fallbacks that come after it.

        Leaves out what is not configured or not served any more; empty when the key of the fallbacks has left the ring.
        """
        delivery = errand.delivery
        left = self._open(delivery.organization_id, errand.fallbacks_sealed)
        for position, (channel, destination) in enumerate(left, start=1):
            try:
                target = self.target(delivery.organization_id, Address(channel, destination, "fallbacks"))
            except (ChannelNotConfigured, DestinationBlocked) as error:
                _log.warning("a fallback was skipped", channel=channel.value, reason=error.reason)
                continue
            delivery_id = new_id()
            yield Send(
                # No caller asked for this one, but every delivery has a request_id of its own.
                request_id=delivery_id,
                request_fingerprint=b"",
                delivery_id=delivery_id,
                otp=errand.otp,
                target=target,
                resend=True,
                fallbacks_sealed=self._seal(delivery.organization_id, left[position:]),
            )

    def _seal(self, organization_id: str, fallbacks: Sequence[tuple[ChannelName, str]]) -> bytes | None:
        if not fallbacks:
            return None
        return self._vault.seal(json.dumps(fallbacks), organization_id=organization_id)

    def _open(self, organization_id: str, sealed: bytes | None) -> list[tuple[ChannelName, str]]:
        if sealed is None:
            return []
        try:
            plain = self._vault.unseal(sealed, organization_id=organization_id)
        except (KeyError, InvalidTag):
            _log.error("no key opens a delivery's fallbacks")
            return []
        return [(ChannelName(channel), destination) for channel, destination in json.loads(plain)]


def _parse(channel: ChannelName, text: str) -> Destination:
    return parse_email(text) if channel is ChannelName.EMAIL else parse_phone(text)
