"""The OTP service: converts requests into calls of server.otps, and their results into responses."""

# ruff: noqa: N802 - a method is named as its rpc

import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, TypeVar
from uuid import UUID

from pulsa.otp.v1 import destination_pb2, otp_pb2
from pulsa.otp.v1 import otp_service_pb2 as pb

from server.api.converters import (
    SUPPRESSION_REASONS,
    preview_message,
    reported_status,
    suppression_message,
    usage_message,
    write_delivery,
    write_otp,
    write_record,
)
from server.api.interceptor import Call
from server.api.pagination import DEFAULT_PAGE_SIZE, PageTokens
from server.api.validation import compile_check
from server.clock import Clock
from server.errors import AccountBusy, WrongCode
from server.otps.admission import Admitted, Replayed, Send, SendOptions
from server.otps.delivery.reports import report_delivery
from server.otps.delivery.suppressions import SuppressionReason, Suppressions
from server.otps.guess_policy import Guess
from server.otps.otp import Otp, OtpRecord, cancel_otp, list_otps, read_otp
from server.otps.recipients import RawDestination, ResendRequest, SendRequest, parse_destination
from server.otps.send import Accepted, Sender
from server.otps.usage import read_usage
from server.otps.verify import Verifier
from server.postgres.batcher import LOCKED, Batcher, Batching, Locked
from server.postgres.pool import Pool, acquire
from server.providers.provider import Channel

DEFAULT_CODE_LENGTH: Final = 6
DEFAULT_TTL: Final = timedelta(minutes=5)
DEFAULT_MAX_ATTEMPTS: Final = 5

_KNOWN_OPTIONS: Final = 1000
_LAST_ID: Final = 2**128 - 1
_CHANNELS: Final = {channel.field: channel for channel in Channel}
_SEPARATORS: Final = str.maketrans("", "", " -")

_rest_is_valid: Final = compile_check(
    pb.SendOtpRequest.DESCRIPTOR,
    ("organization_id", "request_id", "destination", "fallbacks", "context", "metadata"),
)
"""Whether the fields are valid that no other request shares."""

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtpDependencies:
    """The dependencies of OtpService."""

    pool: Pool
    sender: Sender
    verifier: Verifier
    clock: Clock
    batching: Batching
    cooldown: timedelta
    refund_accepted: bool
    """Whether a reported failure refunds the credits although the provider had accepted the message."""
    suppressions: Suppressions


class _SendCall(NamedTuple):
    """A SendOtp that waits for its batch."""

    request: pb.SendOtpRequest
    call: Call


class _ResendCall(NamedTuple):
    """A ResendOtp that waits for its batch."""

    send: Send


class _VerifyCall(NamedTuple):
    """A VerifyOtp that waits for its batch."""

    request: pb.VerifyOtpRequest
    call: Call


class OtpService:
    """pulsa.otp.v1.OtpService; each rpc is documented there.

    SendOtp, ResendOtp and VerifyOtp run in batches, step by step: all calls of a batch are validated and prepared, then
    decided in one transaction, then answered. Repeating one step keeps its code and data in the processor's caches:
    SendOtp cost a quarter more when each call was validated, prepared and answered separately.
    """

    validates_itself: ClassVar = frozenset({"SendOtp", "VerifyOtp"})
    """Rpcs whose requests are validated in their batch, not in the interceptor."""

    def __init__(self, dependencies: OtpDependencies) -> None:
        self._pool = dependencies.pool
        self._sender = dependencies.sender
        self._verifier = dependencies.verifier
        self._clock = dependencies.clock
        self._cooldown = dependencies.cooldown
        self._known_options: dict[tuple[object, ...], SendOptions] = {}
        self._answer_templates: dict[tuple[object, ...], pb.SendOtpResponse] = {}
        self._templates_time: datetime | None = None
        """Of the flush that `_answer_templates` belong to."""
        self._refund_accepted = dependencies.refund_accepted
        self._suppressions = dependencies.suppressions
        self._sends: Batcher[_SendCall | _ResendCall, bytes | Replayed] = Batcher(
            self._send_batch, dependencies.batching
        )
        self._guesses: Batcher[_VerifyCall, bytes] = Batcher(self._verify_batch, dependencies.batching)

    async def drain(self) -> None:
        """Wait until every submitted call is answered."""
        await self._sends.drain()
        await self._guesses.drain()

    async def SendOtp(self, request: pb.SendOtpRequest, call: Call) -> bytes:
        """Charge for a code and send it, or refuse without a charge."""
        if request.validate_only:
            # A preview is about the same request without this field, also for whether it is a repetition.
            request.ClearField("validate_only")
            preview = await self._sender.preview(self._send_request(request, call, _time_zero(self._clock)))
            return pb.SendOtpResponse(preview=preview_message(preview)).SerializeToString()
        answer = await self._sends.submit(request.organization_id, _SendCall(request, call))
        if isinstance(answer, Replayed):
            return self._send_response(pb.SendOtpResponse(), await self._sender.replay(answer))
        return answer

    async def ResendOtp(self, request: pb.ResendOtpRequest, call: Call) -> bytes:
        """Charge for sending the same code again, and send it."""
        send = await self._sender.prepare_resend(_resend_request(request, call, _time_zero(self._clock)))
        answer = await self._sends.submit(request.organization_id, _ResendCall(send))
        if isinstance(answer, Replayed):
            return self._send_response(pb.ResendOtpResponse(), await self._sender.replay(answer))
        return answer

    async def VerifyOtp(self, request: pb.VerifyOtpRequest, call: Call) -> bytes:
        """Return OK for the right code, once per OTP; for a wrong one an error, or OK where the request asks for it."""
        try:
            return await self._guesses.submit(request.organization_id, _VerifyCall(request, call))
        except WrongCode as error:
            if not request.wrong_code_as_result:
                raise
            wrong = pb.VerifyOtpResponse(
                result=pb.VERIFY_RESULT_WRONG_CODE, attempts_remaining=error.attempts_remaining
            )
            return wrong.SerializeToString()

    async def GetOtp(self, request: pb.GetOtpRequest, _: Call) -> pb.GetOtpResponse:
        """Return one OTP."""
        async with acquire(self._pool) as connection:
            record = await read_otp(connection, request.organization_id, UUID(request.otp_id))
        response = pb.GetOtpResponse()
        self._write_record(response.otp, record)
        return response

    async def ListOtps(self, request: pb.ListOtpsRequest, _: Call) -> pb.ListOtpsResponse:
        """Return a page of OTPs, newest first."""
        tokens = PageTokens("ListOtps", request.organization_id, newest=_LAST_ID)
        size = request.page_size or DEFAULT_PAGE_SIZE
        async with acquire(self._pool) as connection:
            records = await list_otps(
                connection,
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
        """Cancel an OTP: its code no longer works."""
        now = self._clock()
        async with acquire(self._pool) as connection:
            record = await cancel_otp(connection, request.organization_id, UUID(request.otp_id), now=now)
        response = pb.CancelOtpResponse()
        self._write_record(response.otp, record)
        return response

    async def ReportDelivery(self, request: pb.ReportDeliveryRequest, _: Call) -> pb.ReportDeliveryResponse:
        """Apply a provider's report and return the delivery."""
        delivery = await report_delivery(
            self._pool,
            request.organization_id,
            UUID(request.delivery_id),
            status=reported_status(request.status),
            failure_reason=request.failure_reason,
            refund_accepted=self._refund_accepted,
            now=self._clock(),
        )
        response = pb.ReportDeliveryResponse()
        write_delivery(response.delivery, delivery)
        return response

    async def ReportMail(self, request: pb.ReportMailRequest, _: Call) -> pb.ReportMailResponse:
        """Apply a report about a mail, suppress its address if it says so, and return the delivery."""
        organization_id, delivery_id = await self._suppressions.organization_of(request.mail_token)
        reason = SUPPRESSION_REASONS.get(request.suppression_reason)
        delivery = await report_delivery(
            self._pool,
            organization_id,
            delivery_id,
            status=reported_status(request.status),
            failure_reason=request.failure_reason,
            refund_accepted=self._refund_accepted or reason is SuppressionReason.BOUNCE,
            now=self._clock(),
        )
        if reason:
            await self._suppressions.add(delivery, reason)
        response = pb.ReportMailResponse()
        write_delivery(response.delivery, delivery)
        return response

    async def ListSuppressions(self, request: pb.ListSuppressionsRequest, _: Call) -> pb.ListSuppressionsResponse:
        """Return a page of suppressed addresses, newest first."""
        tokens = PageTokens("ListSuppressions", request.organization_id, newest=_LAST_ID)
        size = request.page_size or DEFAULT_PAGE_SIZE
        before_id = UUID(int=tokens.read(request.page_token))
        found = await self._suppressions.page(request.organization_id, before_id=before_id, limit=size + 1)
        response = pb.ListSuppressionsResponse(suppressions=map(suppression_message, found[:size]))
        if len(found) > size:
            response.next_page_token = tokens.write(found[size - 1].suppression_id.int)
        return response

    async def LiftSuppression(self, request: pb.LiftSuppressionRequest, _: Call) -> pb.LiftSuppressionResponse:
        """Let mail go to an address again."""
        address = parse_destination(_destination(request.destination, "destination"))
        lifted = await self._suppressions.lift(request.organization_id, address.normalized)
        return pb.LiftSuppressionResponse(lifted=lifted)

    async def GetUsage(self, request: pb.GetUsageRequest, _: Call) -> pb.GetUsageResponse:
        """Return the sends per day and channel."""
        start, end = date.fromisoformat(request.start_date), date.fromisoformat(request.end_date)
        async with acquire(self._pool) as connection:
            days = await read_usage(connection, request.organization_id, start=start, end=end)
        return pb.GetUsageResponse(daily_usages=map(usage_message, days))

    async def _send_batch(
        self, calls: Sequence[_SendCall | _ResendCall], *, wait: bool
    ) -> "list[bytes | Replayed | Locked | Exception]":
        decide = partial(self._sender.accept, wait=wait)
        prepare = partial(self._prepare_send, _time_zero(self._clock))
        return await _in_steps(calls, prepare=prepare, decide=decide, answer=self._answer_send)

    def _prepare_send(self, time_zero: datetime, call: _SendCall | _ResendCall) -> Send:
        if isinstance(call, _ResendCall):
            return call.send
        return self._sender.prepare(self._send_request(call.request, call.call, time_zero))

    def _send_request(self, request: pb.SendOtpRequest, call: Call, time_zero: datetime) -> SendRequest:
        options = self._options(request, call)
        metadata, fallbacks = request.metadata, request.fallbacks
        return SendRequest(
            request.organization_id,
            UUID(request.request_id),
            _destination(request.destination, "destination"),
            options,
            request.context,
            dict(metadata) if metadata else {},
            _fallbacks(request) if fallbacks else (),
            _deadline(call, time_zero),
        )

    def _options(self, request: pb.SendOtpRequest, call: Call) -> SendOptions:
        """Validate the request; returns its options, which are validated once for all requests that are alike."""
        ttl = request.ttl
        key = (
            *(request.purpose, request.locale, request.code_length, request.max_attempts, request.web_otp_domain),
            *(ttl.seconds, ttl.nanos, request.HasField("ttl")),
        )
        known = self._known_options.get(key)
        if known is not None and _rest_is_valid(request):
            return known
        call.validate(request)
        options = SendOptions(
            request.purpose,
            request.locale,
            request.code_length or DEFAULT_CODE_LENGTH,
            timedelta(seconds=ttl.seconds, microseconds=ttl.nanos // 1000) if request.HasField("ttl") else DEFAULT_TTL,
            request.max_attempts or DEFAULT_MAX_ATTEMPTS,
            request.web_otp_domain,
        )
        if len(self._known_options) == _KNOWN_OPTIONS:
            self._known_options.clear()
        self._known_options[key] = options
        return options

    def _answer_send(self, result: Admitted | Replayed, call: _SendCall | _ResendCall) -> bytes | Replayed:
        if isinstance(result, Replayed):
            return result
        if isinstance(call, _ResendCall):
            accepted = Accepted(result.record, result.delivery, result.low_balance, replayed=False)
            return self._send_response(pb.ResendOtpResponse(), accepted)
        send, response = result.send, pb.SendOtpResponse()
        response.CopyFrom(self._answer_template(result))
        otp = response.otp
        otp.organization_id = send.organization_id
        otp.otp_id = str(send.otp_id)
        (delivery,) = otp.deliveries
        delivery.delivery_id = str(send.delivery_id)
        delivery.masked_destination = send.recipient.masked_destination
        if call.request.metadata:
            otp.metadata.MergeFrom(call.request.metadata)
        response.available_credits = result.balance_after
        response.ledger_sequence = result.ledger_sequence
        response.low_balance = result.low_balance
        return response.SerializeToString()

    def _answer_template(self, admitted: Admitted) -> pb.SendOtpResponse:
        """What answers of a flush have in common: made once for all sends that are alike."""
        send = admitted.send
        if admitted.create_time != self._templates_time:
            self._templates_time, self._answer_templates = admitted.create_time, {}
        key = (send.options, send.recipient.channel)
        template = self._answer_templates.get(key)
        if template is None:
            template = self._answer_templates[key] = pb.SendOtpResponse(credits_charged=send.recipient.credits)
            self._write_record(template.otp, admitted.record)
            template.otp.ClearField("metadata")
        return template

    async def _verify_batch(self, calls: Sequence[_VerifyCall], *, wait: bool) -> list[bytes | Locked | Exception]:
        decide = partial(self._verifier.verify, wait=wait)
        guess = partial(self._guess, _time_zero(self._clock))
        return await _in_steps(calls, prepare=guess, decide=decide, answer=self._verify_response)

    def _guess(self, time_zero: datetime, verify: _VerifyCall) -> Guess:
        request, call = verify
        call.validate(request)
        return Guess(
            organization_id=request.organization_id,
            otp_id=UUID(request.otp_id),
            request_id=UUID(request.request_id),
            code=request.code.translate(_SEPARATORS),
            context=request.context,
            deadline=_deadline(call, time_zero),
        )

    def _verify_response(self, otp: Otp, _: _VerifyCall) -> bytes:
        response = pb.VerifyOtpResponse(result=pb.VERIFY_RESULT_VERIFIED)
        write_otp(response.otp, otp, now=self._clock())
        return response.SerializeToString()

    def _send_response(self, response: pb.SendOtpResponse | pb.ResendOtpResponse, accepted: Accepted) -> bytes:
        delivery = accepted.delivery
        self._write_record(response.otp, accepted.record)
        response.credits_charged = delivery.credits
        response.available_credits = delivery.balance_after
        response.ledger_sequence = delivery.ledger_sequence
        response.low_balance = accepted.low_balance
        response.replayed = accepted.replayed
        return response.SerializeToString()

    def _write_record(self, message: otp_pb2.Otp, record: OtpRecord) -> None:
        write_record(message, record, now=self._clock(), cooldown=self._cooldown)


async def _in_steps(
    calls: Sequence[Item],
    *,
    prepare: Callable[[Item], Prepared],
    decide: Callable[[Sequence[Prepared]], Awaitable[Sequence[Any]]],
    answer: Callable[[Any, Item], Answer],
) -> list[Answer | Locked | Exception]:
    """Prepare all calls, decide them together and answer each; return an answer, an error or LOCKED per call.

    An error while preparing or answering a call affects only this call. AccountBusy is LOCKED for all.
    """
    prepared = [_attempt(prepare, call) for call in calls]
    valid = [item for item in prepared if not isinstance(item, Exception)]
    try:
        decided: Iterator[Any] = iter(await decide(valid) if valid else ())
    except AccountBusy:
        decided = iter([LOCKED] * len(valid))
    except Exception as error:  # noqa: BLE001 - every call of this step ends with it
        decided = iter([error] * len(valid))
    results = [item if isinstance(item, Exception) else next(decided) for item in prepared]
    return [
        result if isinstance(result, Exception | Locked) else _attempt(answer, result, call)
        for result, call in zip(results, calls, strict=True)
    ]


def _attempt(function: Callable[..., Answer], *arguments: object) -> Answer | Exception:
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - only this call ends with it
        return error


def _resend_request(request: pb.ResendOtpRequest, call: Call, time_zero: datetime) -> ResendRequest:
    return ResendRequest(
        organization_id=request.organization_id,
        request_id=UUID(request.request_id),
        otp_id=UUID(request.otp_id),
        destination=_destination(request.destination, "destination") if request.HasField("destination") else None,
        deadline=_deadline(call, time_zero),
    )


def _fallbacks(request: pb.SendOtpRequest) -> list[RawDestination]:
    return [
        _destination(fallback.destination, f"fallbacks[{position}].destination")._replace(
            after_seconds=fallback.after.ToTimedelta().total_seconds() if fallback.HasField("after") else None
        )
        for position, fallback in enumerate(request.fallbacks)
    ]


def _destination(destination: destination_pb2.Destination, field: str) -> RawDestination:
    channel = destination.WhichOneof("channel")
    if channel is None:
        raise ValueError(f"validation accepted {field} without a channel")
    return RawDestination(_CHANNELS[channel], getattr(destination, channel), f"{field}.{channel}")


def _time_zero(clock: Clock) -> datetime:
    """The time at which time.monotonic() was 0."""
    return clock() - timedelta(seconds=time.monotonic())


def _deadline(call: Call, time_zero: datetime) -> datetime | None:
    return None if call.deadline == math.inf else time_zero + timedelta(seconds=call.deadline)
