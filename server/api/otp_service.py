"""The OTP service: converts requests into calls of server.otps, and their results into responses."""

# ruff: noqa: N802 - a method is named as its rpc

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import ClassVar, Final, NamedTuple
from uuid import UUID

from pulsa.otp.v1 import otp_service_pb2 as pb

from server.api.converters import (
    preview_message,
    write_compact,
    write_otp,
    write_refusal,
    write_send_error,
)
from server.api.interceptor import Call, ConcurrencyLimit
from server.api.otp_records import OtpDependencies, OtpRecords, raw_destination
from server.api.validation import MOST_REPEATED, RULES, compile_check, compile_validation
from server.clock import Clock
from server.errors import (
    ChannelNotConfigured,
    DestinationBlocked,
    DestinationUnreadable,
    DomainError,
    FieldViolation,
    InvalidDestination,
    InvalidFields,
    OrganizationMismatch,
    OtpNotFound,
    Overloaded,
    WrongCode,
)
from server.otps.admission import Admitted, Replayed, Send, SendOptions
from server.otps.destinations import plain_digits
from server.otps.guess_policy import Guess
from server.otps.otp import Delivery, Otp
from server.otps.recipients import RawDestination, ResendRequest, SendRequest
from server.otps.send import Accepted
from server.postgres.batcher import Batcher, Locked, in_steps

DEFAULT_CODE_LENGTH: Final = 6
DEFAULT_TTL: Final = timedelta(minutes=5)
DEFAULT_MAX_ATTEMPTS: Final = 5

_KNOWN_OPTIONS: Final = 1000

_rest_is_valid: Final = compile_check(
    pb.SendOtpRequest.DESCRIPTOR,
    ("organization_id", "request_id", "destination", "fallbacks", "context", "metadata"),
)
"""Whether the fields are valid that no other request shares."""
_validate_send: Final = compile_validation(pb.SendOtpRequest.DESCRIPTOR)
_BATCH_RETRY_SECONDS: Final = 0.2
_NOT_PREPARED: Final = (ChannelNotConfigured, DestinationBlocked, InvalidDestination)
"""Errors of a request that could not be prepared: it may have been accepted before the settings changed."""


class _SendCall(NamedTuple):
    """A SendOtp that waits for its batch."""

    request: pb.SendOtpRequest
    call: Call


class _ItemCall(NamedTuple):
    """A request of a BatchSendOtps that waits for its batch."""

    request: pb.SendOtpRequest
    call: Call
    result: pb.BatchSendOtpsResult
    """Where the answer goes."""
    compact: bool


class _ResendCall(NamedTuple):
    """A ResendOtp that waits for its batch."""

    send: Send


class _VerifyCall(NamedTuple):
    """A VerifyOtp that waits for its batch."""

    request: pb.VerifyOtpRequest
    call: Call


_AnySend = _SendCall | _ItemCall | _ResendCall


class OtpService(OtpRecords):
    """pulsa.otp.v1.OtpService; each rpc is documented there. OtpRecords has the others.

    SendOtp, ResendOtp and VerifyOtp run in batches, step by step: all calls of a batch are validated and prepared, then
    decided in one transaction, then answered. Repeating one step keeps its code and data in the processor's caches:
    SendOtp cost a quarter more when each call was validated, prepared and answered separately.
    """

    validates_itself: ClassVar = frozenset({"SendOtp", "VerifyOtp", "BatchSendOtps", "PreviewOtps"})
    """Rpcs whose requests are validated in their batch, or each for itself, not in the interceptor."""

    def __init__(self, dependencies: OtpDependencies) -> None:
        super().__init__(dependencies)
        self._sender = dependencies.sender
        self._verifier = dependencies.verifier
        self._known_options: dict[tuple[object, ...], SendOptions] = {}
        self._answer_templates: dict[tuple[object, ...], pb.SendOtpResponse] = {}
        self._templates_time: datetime | None = None
        """Of the flush that `_answer_templates` belong to."""
        self._free_places = dependencies.free_places
        self._items = ConcurrencyLimit(dependencies.batch_items_at_once)
        self._sends: Batcher[_AnySend, bytes | Replayed] = Batcher(self._send_batch, dependencies.batching)
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
            (preview,) = await self._sender.preview([self._send_request(request, call, _time_zero(self._clock))])
            return pb.SendOtpResponse(preview=preview_message(preview)).SerializeToString()
        try:
            answer = await self._sends.submit(request.organization_id, _SendCall(request, call))
        except _NOT_PREPARED:
            repeat = await self._sender.find_repeat(self._send_request(request, call, _time_zero(self._clock)))
            if repeat is None:
                raise
            return self._send_response(pb.SendOtpResponse(), repeat)
        if isinstance(answer, Replayed):
            return self._send_response(pb.SendOtpResponse(), await self._sender.replay(answer))
        return answer

    async def BatchSendOtps(self, request: pb.BatchSendOtpsRequest, call: Call) -> pb.BatchSendOtpsResponse:
        """Send each OTP or refuse it: the same sends as by SendOtp, in the same batches."""
        response = pb.BatchSendOtpsResponse()
        items: list[_ItemCall] = []
        call, time_zero = call._replace(validate=_validate_send), _time_zero(self._clock)
        for send in _sends_of(request):
            result = response.results.add()
            if isinstance(send, DomainError):
                write_send_error(result.error, send)
            else:
                items.append(_ItemCall(send, call, result, request.compact))
        with self._hold_places(request.organization_id, len(items)):
            answers = await self._sends.submit_all(request.organization_id, items)
        for item, answer in zip(items, answers, strict=True):
            try:
                if isinstance(answer, _NOT_PREPARED):
                    repeat = await self._sender.find_repeat(self._send_request(item.request, call, time_zero))
                    if repeat is None:
                        raise answer
                    self._write_repeat(item, repeat.delivery, repeat)
                elif isinstance(answer, Exception):
                    raise answer
                elif isinstance(answer, Replayed):
                    repeat = None if item.compact else await self._sender.replay(answer)
                    self._write_repeat(item, answer.delivery, repeat)
            except DomainError as error:
                write_send_error(item.result.error, error)
        return response

    @contextmanager
    def _hold_places(self, organization_id: str, count: int) -> Iterator[None]:
        """Count the items of a batch in flight. Raises Overloaded for more than can be sent soon."""
        items = self._items
        items.in_flight += count
        try:
            if items.in_flight > min(items.limit, self._free_places()) or not items.enter(organization_id, count):
                raise Overloaded(retry_after_seconds=_BATCH_RETRY_SECONDS)
            try:
                yield
            finally:
                items.leave(organization_id, count)
        finally:
            items.in_flight -= count

    def _write_repeat(self, item: _ItemCall, first: Delivery, accepted: Accepted | None) -> None:
        """Write the first answer to a repeated request; `accepted` may be None for a compact result."""
        if accepted is not None and not item.compact:
            self._write_response(item.result.response, accepted)
            return
        write_compact(
            item.result.compact,
            otp_id=first.otp_id,
            delivery_id=first.delivery_id,
            credits=first.credits,
            ledger_sequence=first.ledger_sequence,
            replayed=True,
        )

    async def PreviewOtps(self, request: pb.PreviewOtpsRequest, call: Call) -> pb.PreviewOtpsResponse:
        """What a batch of these requests would do."""
        call, time_zero = call._replace(validate=_validate_send), _time_zero(self._clock)
        response = pb.PreviewOtpsResponse()
        valid: list[tuple[pb.SendPreview, SendRequest]] = []
        for send in _sends_of(request):
            message = response.previews.add()
            try:
                if isinstance(send, DomainError):
                    raise send
                valid.append((message, self._send_request(send, call, time_zero)))
            except DomainError as error:
                write_refusal(message, error)
        previews = await self._sender.preview([send for _, send in valid])
        for (message, _), preview in zip(valid, previews, strict=True):
            message.CopyFrom(preview_message(preview))
            response.total_credits += 0 if preview.refusal else preview.credits
        return response

    async def ResendOtp(self, request: pb.ResendOtpRequest, call: Call) -> bytes:
        """Charge for sending the same code again, and send it."""
        resend = _resend_request(request, call, _time_zero(self._clock))
        try:
            send = await self._sender.prepare_resend(resend)
        except (*_NOT_PREPARED, DestinationUnreadable, OtpNotFound):
            repeat = await self._sender.find_repeat(resend)
            if repeat is None:
                raise
            return self._send_response(pb.ResendOtpResponse(), repeat)
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

    async def _send_batch(
        self, calls: Sequence[_AnySend], *, wait: bool
    ) -> "list[bytes | Replayed | Locked | Exception]":
        decide = partial(self._sender.accept, wait=wait)
        prepare = partial(self._prepare_send, _time_zero(self._clock))
        return await in_steps(calls, prepare=prepare, decide=decide, answer=self._answer_send)

    def _prepare_send(self, time_zero: datetime, call: _AnySend) -> Send:
        if isinstance(call, _ResendCall):
            return call.send
        return self._sender.prepare(self._send_request(call.request, call.call, time_zero))

    def _send_request(self, request: pb.SendOtpRequest, call: Call, time_zero: datetime) -> SendRequest:
        options = self._options(request, call)
        metadata, fallbacks = request.metadata, request.fallbacks
        return SendRequest(
            request.organization_id,
            UUID(request.request_id),
            raw_destination(request.destination, "destination"),
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
            *(request.sms_app_hash, ttl.seconds, ttl.nanos, request.HasField("ttl")),
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
            request.web_otp_domain or (f"#{request.sms_app_hash}" if request.sms_app_hash else ""),
        )
        if len(self._known_options) == _KNOWN_OPTIONS:
            self._known_options.clear()
        self._known_options[key] = options
        return options

    def _answer_send(self, result: Admitted | Replayed, call: _AnySend) -> bytes | Replayed:
        if isinstance(result, Replayed):
            return result
        if isinstance(call, _ResendCall):
            accepted = Accepted(result.record, result.delivery, result.low_balance, replayed=False)
            return self._send_response(pb.ResendOtpResponse(), accepted)
        if isinstance(call, _ItemCall):
            if call.compact:
                send = result.send
                write_compact(
                    call.result.compact,
                    otp_id=send.otp_id,
                    delivery_id=send.delivery_id,
                    credits=send.recipient.credits,
                    ledger_sequence=result.ledger_sequence,
                )
            else:
                self._write_admitted(call.result.response, result, call.request)
            return b""
        response = pb.SendOtpResponse()
        self._write_admitted(response, result, call.request)
        return response.SerializeToString()

    def _write_admitted(self, response: pb.SendOtpResponse, admitted: Admitted, request: pb.SendOtpRequest) -> None:
        send = admitted.send
        response.CopyFrom(self._answer_template(admitted))
        otp = response.otp
        otp.organization_id = send.organization_id
        otp.otp_id = str(send.otp_id)
        (delivery,) = otp.deliveries
        delivery.delivery_id = str(send.delivery_id)
        delivery.masked_destination = send.recipient.masked_destination
        if request.metadata:
            otp.metadata.MergeFrom(request.metadata)
        response.available_credits = admitted.balance_after
        response.ledger_sequence = admitted.ledger_sequence
        response.low_balance = admitted.low_balance

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
        return await in_steps(calls, prepare=guess, decide=decide, answer=self._verify_response)

    def _guess(self, time_zero: datetime, verify: _VerifyCall) -> Guess:
        request, call = verify
        call.validate(request)
        code = request.code
        return Guess(
            organization_id=request.organization_id,
            otp_id=UUID(request.otp_id),
            request_id=UUID(request.request_id),
            code=code if code.isascii() and code.isdecimal() else plain_digits(code),
            context=request.context,
            deadline=_deadline(call, time_zero),
        )

    def _verify_response(self, otp: Otp, _: _VerifyCall) -> bytes:
        response = pb.VerifyOtpResponse()
        response.result = pb.VERIFY_RESULT_VERIFIED
        write_otp(response.otp, otp, now=self._clock())
        return response.SerializeToString()

    def _send_response(self, response: pb.SendOtpResponse | pb.ResendOtpResponse, accepted: Accepted) -> bytes:
        self._write_response(response, accepted)
        return response.SerializeToString()

    def _write_response(self, response: pb.SendOtpResponse | pb.ResendOtpResponse, accepted: Accepted) -> None:
        delivery = accepted.delivery
        self._write_record(response.otp, accepted.record)
        response.credits_charged = delivery.credits
        response.available_credits = delivery.balance_after
        response.ledger_sequence = delivery.ledger_sequence
        response.low_balance = accepted.low_balance
        response.replayed = accepted.replayed


def _sends_of(request: pb.BatchSendOtpsRequest | pb.PreviewOtpsRequest) -> Iterator[pb.SendOtpRequest | DomainError]:
    """Each request of a batch, with its organization, or the error of one that no batch takes.

    Raises InvalidFields for a batch without or with too many requests.
    """
    rule, most = RULES["organization_id"], MOST_REPEATED["requests"]
    violations = [] if rule.holds(request.organization_id) else [FieldViolation("organization_id", rule.description)]
    if not 1 <= len(request.requests) <= most:
        violations.append(FieldViolation("requests", f"1 to {most}"))
    if violations:
        raise InvalidFields(violations=tuple(violations))
    for send in request.requests:
        if send.organization_id not in ("", request.organization_id):
            yield OrganizationMismatch()
        elif send.validate_only:
            yield InvalidFields(violations=(FieldViolation("validate_only", "false in a batch"),))
        else:
            send.organization_id = request.organization_id
            yield send


def _resend_request(request: pb.ResendOtpRequest, call: Call, time_zero: datetime) -> ResendRequest:
    return ResendRequest(
        organization_id=request.organization_id,
        request_id=UUID(request.request_id),
        otp_id=UUID(request.otp_id),
        destination=raw_destination(request.destination, "destination") if request.HasField("destination") else None,
        deadline=_deadline(call, time_zero),
    )


def _fallbacks(request: pb.SendOtpRequest) -> list[RawDestination]:
    return [
        raw_destination(fallback.destination, f"fallbacks[{position}].destination")._replace(
            after_seconds=fallback.after.ToTimedelta().total_seconds() if fallback.HasField("after") else None
        )
        for position, fallback in enumerate(request.fallbacks)
    ]


def _time_zero(clock: Clock) -> datetime:
    """The time at which time.monotonic() was 0."""
    return clock() - timedelta(seconds=time.monotonic())


def _deadline(call: Call, time_zero: datetime) -> datetime | None:
    return None if call.deadline == math.inf else time_zero + timedelta(seconds=call.deadline)
