"""Gathers what callers ask for and turns it into sends: parses and seals destinations, prices them, binds the code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeVar
from uuid import UUID

from server.channels.channel import ChannelName, Message
from server.channels.segments import segments
from server.channels.templates import Templates, load_templates
from server.clock import Clock, utc_now
from server.database.batcher import Batcher, Batching
from server.database.pool import Pool, connection
from server.errors import DomainError, OtpNotFound
from server.ids import new_id
from server.otps.admission import Admitted, Refused, Replayed, Send
from server.otps.otp import Delivery, Otp, OtpStatus, Target
from server.otps.pumping import EVERYBODY, Served
from server.otps.reading import OtpRecord, read_otp
from server.otps.sending import Sender
from server.otps.targets import Address, Targets
from server.otps.vault import Vault

Answer = TypeVar("Answer")


class SendOrder(NamedTuple):
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


class ResendOrder(NamedTuple):
    """A request to send an existing OTP once more."""

    organization_id: str
    request_id: UUID
    request: bytes
    otp_id: UUID
    address: Address | None
    """None for where it went last."""
    deadline: datetime | None = None


class Accepted(NamedTuple):
    """A send that was accepted, now or by an earlier call with the same request_id."""

    record: OtpRecord
    delivery: Delivery
    low_balance: bool
    replayed: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """What a send would do, if it came now."""

    channel: ChannelName
    credits: int = 0
    """What it would take: nothing when it would be refused before its price is known, or was accepted before."""
    masked_destination: str = ""
    """Empty for a destination that cannot exist."""
    segments: int = 0
    """Of the text message; 0 for other channels."""
    refusal: DomainError | None = None


class Orders:
    """Takes orders to send and to resend, and works on those together that come at the same time."""

    def __init__(
        self,
        pool: Pool,
        vault: Vault,
        sender: Sender,
        *,
        channel_credits: Mapping[ChannelName, int],
        batching: Batching,
        served: Served = EVERYBODY,
        templates: Templates | None = None,
        clock: Clock = utc_now,
    ) -> None:
        """`channel_credits` has the price of every channel that is configured, and of no other.

        `templates` are what previews count the segments of: the built-in ones when none are given.
        """
        self._pool = pool
        self._vault = vault
        self._sender = sender
        self._targets = Targets(vault, channel_credits, served)
        self._templates = templates or load_templates(None)
        self._clock = clock
        self._batcher: Batcher[Send, Admitted | Replayed] = Batcher(sender.accept, batching)

    async def send(
        self, organization_id: str, order: Callable[[], SendOrder], answer: Callable[[Accepted], Answer]
    ) -> Answer:
        """Charge and send a new OTP, or raise why not. A repeat gives what the first call was given.

        `order` makes the order, and `answer` what is given for its acceptance, when it is its batch's turn.
        """
        return await self._submit(organization_id, lambda: self._new(order()), answer)

    async def preview(self, order: SendOrder) -> Preview:
        """What `send` would do with the order now; does nothing, and promises nothing for later."""
        preview = Preview(order.address.channel)
        try:
            target = self._targets.target(order.organization_id, order.address)
            preview = replace(preview, credits=target.credits, masked_destination=target.masked_destination)
            send = self._new(order)
            preview = replace(preview, segments=self._segments(send))
        except DomainError as error:
            return replace(preview, refusal=error)
        decision = await self._sender.preview(send)
        if isinstance(decision, Refused):
            return replace(preview, refusal=decision.error)
        return replace(preview, credits=0) if isinstance(decision, Replayed) else preview

    async def resend(self, order: ResendOrder, answer: Callable[[Accepted], Answer]) -> Answer:
        """Charge and send the same code once more, or raise why not. Wrong attempts stay counted."""
        async with connection(self._pool) as lent:
            record = await read_otp(lent, order.organization_id, order.otp_id)
        if order.address is None:
            target = self._last_target(record)
        else:
            target = self._targets.target(order.organization_id, order.address)
        send = Send(
            request_id=order.request_id,
            request_fingerprint=self._vault.fingerprint(order.request),
            delivery_id=new_id(),
            otp=record.otp,
            target=target,
            resend=True,
            deadline=order.deadline,
        )
        return await self._submit(order.organization_id, lambda: send, answer, record.deliveries)

    async def drain(self) -> None:
        """Wait until every order that was taken is decided."""
        await self._batcher.drain()

    def _new(self, order: SendOrder) -> Send:
        """The send of a new OTP. Raises as `Targets.target` does."""
        target = self._targets.target(order.organization_id, order.address)
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
            to_phone=bool(target.areas) or any(one.channel is not ChannelName.EMAIL for one in order.fallbacks),
        )
        return Send(
            request_id=order.request_id,
            request_fingerprint=self._vault.fingerprint(order.request),
            delivery_id=new_id(),
            otp=otp,
            target=target,
            fallbacks_sealed=self._targets.seal_fallbacks(order.organization_id, order.fallbacks),
            deadline=order.deadline,
        )

    def _segments(self, send: Send) -> int:
        """Of the text message that the send would be; every code of its length takes as many."""
        if send.target.channel is not ChannelName.SMS:
            return 0
        otp = send.otp
        message = Message(
            delivery_id=send.delivery_id,
            channel=send.target.channel,
            destination=send.target.destination,
            code="0" * otp.code_length,
            purpose=otp.purpose,
            locale=otp.locale,
            expire_time=otp.expire_time,
            web_otp_domain=otp.web_otp_domain,
            reference="",
        )
        return segments(self._templates.render(message, now=otp.create_time).text).count

    async def _submit(
        self,
        organization_id: str,
        prepare: Callable[[], Send],
        answer: Callable[[Accepted], Answer],
        earlier: Sequence[Delivery] = (),
    ) -> Answer:
        answered = await self._batcher.submit(organization_id, prepare, partial(_finish, answer, earlier))
        if not isinstance(answered, Replayed):
            return answered
        async with connection(self._pool) as lent:
            record = await read_otp(lent, organization_id, answered.delivery.otp_id)
        return answer(Accepted(record, answered.delivery, answered.low_balance, replayed=True))

    def _last_target(self, record: OtpRecord) -> Target:
        last = record.deliveries[-1]
        if last.destination_sealed is None:
            # Retention has erased where it went, long after the code expired.
            raise OtpNotFound
        destination = self._vault.unseal(last.destination_sealed, organization_id=last.organization_id)
        return self._targets.target(last.organization_id, Address(last.channel, destination, "destination"))


def _finish(
    answer: Callable[[Accepted], Answer], earlier: Sequence[Delivery], decision: Admitted | Replayed
) -> Answer | Replayed:
    """The answer to what is accepted now; what was accepted before is left to be looked up."""
    if isinstance(decision, Replayed):
        return decision
    record = OtpRecord(decision.send.otp, [*earlier, decision.delivery])
    return answer(Accepted(record, decision.delivery, decision.low_balance, replayed=False))
