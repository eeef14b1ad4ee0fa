"""Turns what a caller asks for into sends: parses and seals destinations, prices them, binds the code."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from server.channels.channel import ChannelName
from server.channels.destinations import parse_email, parse_phone
from server.clock import Clock, utc_now
from server.database.pool import Pool, connection
from server.errors import ChannelNotConfigured, InvalidDestination, OtpNotFound
from server.ids import new_id
from server.otps.admission import Admitted, Send
from server.otps.otp import Delivery, Otp, OtpStatus, Target
from server.otps.reading import OtpRecord, read_otp
from server.otps.sending import Sender
from server.otps.vault import Vault


@dataclass(frozen=True, slots=True)
class Address:
    """A destination as the caller wrote it."""

    channel: ChannelName
    text: str
    field: str
    """Where it stands in the request, for the error that says it is wrong."""


@dataclass(frozen=True, slots=True)
class SendOrder:
    """A request to send a new OTP."""

    organization_id: str
    request_id: UUID
    request: bytes
    """The request's bytes: a repeat with other bytes is no repeat."""
    address: Address
    fallbacks: Sequence[Address]
    purpose: str
    locale: str
    code_length: int
    ttl: timedelta
    max_attempts: int
    context: str
    web_otp_domain: str
    metadata: dict[str, str]
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class ResendOrder:
    """A request to send an existing OTP once more."""

    organization_id: str
    request_id: UUID
    request: bytes
    otp_id: UUID
    address: Address | None
    """None for where it went last."""
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A send that was accepted, now or by an earlier call with the same request_id."""

    record: OtpRecord
    delivery: Delivery
    low_balance: bool
    replayed: bool


class Orders:
    """Takes orders to send and to resend."""

    def __init__(
        self,
        pool: Pool,
        vault: Vault,
        sender: Sender,
        *,
        channel_credits: Mapping[ChannelName, int],
        clock: Clock = utc_now,
    ) -> None:
        """`channel_credits` has the price of every channel that is configured, and of no other."""
        self._pool = pool
        self._vault = vault
        self._sender = sender
        self._channel_credits = channel_credits
        self._clock = clock

    async def send(self, order: SendOrder) -> Accepted:
        """Charge and send a new OTP, or raise why not. A repeat gives what the first call was given."""
        target = self.target(order.organization_id, order.address)
        now = self._clock()
        otp = Otp(
            organization_id=order.organization_id,
            otp_id=new_id(),
            purpose=order.purpose,
            locale=order.locale,
            destination_digest=target.destination_digest,
            code_key_id=self._vault.current_key_id,
            code_length=order.code_length,
            context_digest=self._vault.context_digest(order.context),
            web_otp_domain=order.web_otp_domain,
            metadata=order.metadata,
            status=OtpStatus.PENDING,
            attempts=0,
            max_attempts=order.max_attempts,
            create_time=now,
            expire_time=now + order.ttl,
        )
        return await self._submit(
            Send(
                request_id=order.request_id,
                request_fingerprint=self._vault.fingerprint(order.request),
                delivery_id=new_id(),
                otp=otp,
                target=target,
                fallbacks_sealed=self._seal_fallbacks(order),
                deadline=order.deadline,
            )
        )

    async def resend(self, order: ResendOrder) -> Accepted:
        """Charge and send the same code once more, or raise why not. Wrong attempts stay counted."""
        async with connection(self._pool) as lent:
            record = await read_otp(lent, order.organization_id, order.otp_id)
        if order.address is None:
            target = self._last_target(record)
        else:
            target = self.target(order.organization_id, order.address)
        return await self._submit(
            Send(
                request_id=order.request_id,
                request_fingerprint=self._vault.fingerprint(order.request),
                delivery_id=new_id(),
                otp=record.otp,
                target=target,
                resend=True,
                deadline=order.deadline,
            ),
            earlier=record.deliveries,
        )

    def target(self, organization_id: str, address: Address) -> Target:
        """The destination as it is sent to and recorded. Raises ChannelNotConfigured or InvalidDestination."""
        credits = self._price(address.channel)
        try:
            parse = parse_email if address.channel is ChannelName.EMAIL else parse_phone
            destination = parse(address.text)
        except ValueError:
            raise InvalidDestination(field=address.field) from None
        return Target(
            channel=address.channel,
            credits=credits,
            destination=destination.normalized,
            destination_digest=self._vault.digest(destination.normalized),
            destination_sealed=self._vault.seal(destination.normalized, organization_id=organization_id),
            masked_destination=destination.masked,
        )

    async def _submit(self, send: Send, earlier: Sequence[Delivery] = ()) -> Accepted:
        decision = await self._sender.send(send)
        if isinstance(decision, Admitted):
            record = OtpRecord(send.otp, [*earlier, decision.delivery])
            return Accepted(record, decision.delivery, decision.low_balance, replayed=False)
        async with connection(self._pool) as lent:
            record = await read_otp(lent, send.otp.organization_id, decision.delivery.otp_id)
        return Accepted(record, decision.delivery, decision.low_balance, replayed=True)

    def _last_target(self, record: OtpRecord) -> Target:
        last = record.deliveries[-1]
        if last.destination_sealed is None:
            # Retention has erased where it went, long after the code expired.
            raise OtpNotFound
        return Target(
            channel=last.channel,
            credits=self._price(last.channel),
            destination=self._vault.unseal(last.destination_sealed, organization_id=last.organization_id),
            destination_digest=last.destination_digest,
            destination_sealed=last.destination_sealed,
            masked_destination=last.masked_destination,
        )

    def _price(self, channel: ChannelName) -> int:
        credits = self._channel_credits.get(channel)
        if credits is None:
            raise ChannelNotConfigured(channel=channel.value)
        return credits

    def _seal_fallbacks(self, order: SendOrder) -> bytes | None:
        if not order.fallbacks:
            return None
        targets = [self.target(order.organization_id, address) for address in order.fallbacks]
        plain = json.dumps([[target.channel.value, target.destination] for target in targets])
        return self._vault.seal(plain, organization_id=order.organization_id)
