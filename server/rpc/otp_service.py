"""The OTP service: turns requests into calls of the OTP room, and what it says into responses."""

# ruff: noqa: N802 - a method is named as its rpc

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import ClassVar, Final
from uuid import UUID

from pulsa.otp.v1 import destination_pb2, otp_pb2
from pulsa.otp.v1 import otp_service_pb2 as pb

from server.channels.channel import ChannelName
from server.database.pool import Pool, connection
from server.errors import FieldViolation, InvalidFields
from server.otps.guessing import Guess
from server.otps.orders import Accepted, Orders, ResendOrder, SendOrder
from server.otps.otp import Otp
from server.otps.reading import OtpRecord, cancel_otp, list_otps, read_otp
from server.otps.reports import report_delivery
from server.otps.targets import Address
from server.otps.usage import read_usage
from server.otps.vault import Vault
from server.otps.verifying import Verifier
from server.rpc.door import Call
from server.rpc.otp_messages import (
    preview_message,
    reported_status,
    usage_message,
    write_delivery,
    write_otp,
    write_record,
)
from server.rpc.pages import DEFAULT_PAGE_SIZE, PageTokens

DEFAULT_CODE_LENGTH: Final = 6
DEFAULT_TTL: Final = timedelta(minutes=5)
DEFAULT_MAX_ATTEMPTS: Final = 5

_LAST_ID: Final = 2**128 - 1
_CHANNELS: Final = {"email": ChannelName.EMAIL, "whatsapp": ChannelName.WHATSAPP, "sms": ChannelName.SMS}
_LONGEST_USAGE: Final = timedelta(days=92)
_SEPARATORS: Final = str.maketrans("", "", " -")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtpRoom:
    """What the servicer works with."""

    pool: Pool
    vault: Vault
    orders: Orders
    verifier: Verifier
    cooldown: timedelta
    refund_accepted: bool
    """Whether a failure that is reported after the provider had accepted gives the credits back."""


class OtpService:
    """pulsa.otp.v1.OtpService; each rpc is documented there."""

    checks_itself: ClassVar = frozenset({"SendOtp", "VerifyOtp"})
    """With their batches: among the calls of others a check takes several times as long."""

    def __init__(self, room: OtpRoom) -> None:
        self._room = room

    async def SendOtp(self, request: pb.SendOtpRequest, call: Call) -> bytes:
        """Charged and on its way, or refused and free."""
        if request.validate_only:
            # A preview asks about the send that a request without this field is, also whether that came before.
            request.ClearField("validate_only")
            preview = await self._room.orders.preview(_send_order(request, call))
            return pb.SendOtpResponse(preview=preview_message(preview)).SerializeToString()
        return await self._room.orders.send(
            request.organization_id, partial(_send_order, request, call), self._send_answer
        )

    async def ResendOtp(self, request: pb.ResendOtpRequest, call: Call) -> bytes:
        """The same code again, charged."""
        return await self._room.orders.resend(
            ResendOrder(
                organization_id=request.organization_id,
                request_id=UUID(request.request_id),
                request=request.SerializeToString(deterministic=True),
                otp_id=UUID(request.otp_id),
                address=_address(request.destination, "destination") if request.HasField("destination") else None,
                deadline=_deadline(call),
            ),
            self._resend_answer,
        )

    async def VerifyOtp(self, request: pb.VerifyOtpRequest, call: Call) -> bytes:
        """OK for the right code, once."""
        return await self._room.verifier.verify(
            request.organization_id, partial(self._guess, request, call), _verify_answer
        )

    async def GetOtp(self, request: pb.GetOtpRequest, _: Call) -> pb.GetOtpResponse:
        """One OTP."""
        async with connection(self._room.pool) as lent:
            record = await read_otp(lent, request.organization_id, UUID(request.otp_id))
        response = pb.GetOtpResponse()
        self._write_record(response.otp, record)
        return response

    async def ListOtps(self, request: pb.ListOtpsRequest, _: Call) -> pb.ListOtpsResponse:
        """A page of OTPs, newest first."""
        tokens = PageTokens("ListOtps", request.organization_id, newest=_LAST_ID)
        size = request.page_size or DEFAULT_PAGE_SIZE
        async with connection(self._room.pool) as lent:
            records = await list_otps(
                lent,
                request.organization_id,
                before_otp_id=UUID(int=tokens.read(request.page_token)),
                limit=size + 1,
            )
        response = pb.ListOtpsResponse()
        for record in records[:size]:
            self._write_record(response.otps.add(), record)
        if len(records) > size:
            response.next_page_token = tokens.write(records[size - 1].otp.otp_id.int)
        return response

    async def CancelOtp(self, request: pb.CancelOtpRequest, _: Call) -> pb.CancelOtpResponse:
        """The code no longer works."""
        now = datetime.now(UTC)
        async with connection(self._room.pool) as lent:
            record = await cancel_otp(lent, request.organization_id, UUID(request.otp_id), now=now)
        response = pb.CancelOtpResponse()
        self._write_record(response.otp, record)
        return response

    async def ReportDelivery(self, request: pb.ReportDeliveryRequest, _: Call) -> pb.ReportDeliveryResponse:
        """The delivery after a provider's report."""
        delivery = await report_delivery(
            self._room.pool,
            request.organization_id,
            UUID(request.delivery_id),
            status=reported_status(request.status),
            failure_reason=request.failure_reason,
            refund_accepted=self._room.refund_accepted,
            now=datetime.now(UTC),
        )
        response = pb.ReportDeliveryResponse()
        write_delivery(response.delivery, delivery)
        return response

    async def GetUsage(self, request: pb.GetUsageRequest, _: Call) -> pb.GetUsageResponse:
        """Sends per day and channel."""
        start, end = _days(request)
        async with connection(self._room.pool) as lent:
            days = await read_usage(lent, request.organization_id, start=start, end=end)
        return pb.GetUsageResponse(daily_usages=map(usage_message, days))

    def _guess(self, request: pb.VerifyOtpRequest, call: Call) -> Guess:
        call.check(request)
        return Guess(
            organization_id=request.organization_id,
            otp_id=UUID(request.otp_id),
            request_id=UUID(request.request_id),
            code=request.code.translate(_SEPARATORS),
            context_digest=self._room.vault.context_digest(request.context),
            deadline=_deadline(call),
        )

    def _send_answer(self, accepted: Accepted) -> bytes:
        response = pb.SendOtpResponse()
        self._write_charge(response, accepted)
        return response.SerializeToString()

    def _resend_answer(self, accepted: Accepted) -> bytes:
        response = pb.ResendOtpResponse()
        self._write_charge(response, accepted)
        return response.SerializeToString()

    def _write_charge(self, response: pb.SendOtpResponse | pb.ResendOtpResponse, accepted: Accepted) -> None:
        """Fill in what both kinds of send answer with."""
        delivery = accepted.delivery
        self._write_record(response.otp, accepted.record)
        response.credits_charged = delivery.credits
        response.available_credits = delivery.balance_after
        response.ledger_sequence = delivery.ledger_sequence
        response.low_balance = accepted.low_balance
        response.replayed = accepted.replayed

    def _write_record(self, message: otp_pb2.Otp, record: OtpRecord) -> None:
        write_record(message, record, now=datetime.now(UTC), cooldown=self._room.cooldown)


def _verify_answer(otp: Otp) -> bytes:
    response = pb.VerifyOtpResponse()
    write_otp(response.otp, otp, now=datetime.now(UTC))
    return response.SerializeToString()


def _send_order(request: pb.SendOtpRequest, call: Call) -> SendOrder:
    call.check(request)
    return SendOrder(
        organization_id=request.organization_id,
        request_id=UUID(request.request_id),
        request=request.SerializeToString(deterministic=True),
        address=_address(request.destination, "destination"),
        fallbacks=_fallbacks(request) if request.fallbacks else (),
        purpose=request.purpose,
        locale=request.locale,
        code_length=request.code_length or DEFAULT_CODE_LENGTH,
        ttl=timedelta(seconds=request.ttl.seconds, microseconds=request.ttl.nanos // 1000)
        if request.HasField("ttl")
        else DEFAULT_TTL,
        max_attempts=request.max_attempts or DEFAULT_MAX_ATTEMPTS,
        context=request.context,
        web_otp_domain=request.web_otp_domain,
        metadata=dict(request.metadata) if request.metadata else {},
        deadline=_deadline(call),
    )


def _fallbacks(request: pb.SendOtpRequest) -> list[Address]:
    return [_address(fallback, f"fallbacks[{position}]") for position, fallback in enumerate(request.fallbacks)]


def _address(destination: destination_pb2.Destination, field: str) -> Address:
    channel = destination.WhichOneof("channel")
    if channel is None:
        raise ValueError(f"validation let {field} without a channel pass")
    return Address(_CHANNELS[channel], getattr(destination, channel), f"{field}.{channel}")


def _deadline(call: Call) -> datetime | None:
    return None if call.deadline == math.inf else datetime.fromtimestamp(call.deadline, UTC)


def _days(request: pb.GetUsageRequest) -> tuple[date, date]:
    """The first and the last day. Raises InvalidFields for days that do not exist, or too many of them."""
    try:
        start, end = date.fromisoformat(request.start_date), date.fromisoformat(request.end_date)
    except ValueError:
        violation = FieldViolation("start_date", "start_date and end_date must be days of the calendar, as YYYY-MM-DD")
        raise InvalidFields(violations=(violation,)) from None
    if not timedelta() <= end - start <= _LONGEST_USAGE:
        violation = FieldViolation("end_date", f"must be 0 to {_LONGEST_USAGE.days} days after start_date")
        raise InvalidFields(violations=(violation,))
    return start, end
