"""The OTP service: converts requests into calls of server.otps, and their results into responses."""

# ruff: noqa: N802 - a method is named as its rpc

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import chain, islice
from typing import ClassVar, Final, NamedTuple, TypeVar
from uuid import UUID

from pulsa.otp.v1 import otp_service_pb2 as pb

from server.api.converters import (
    preview_message,
    write_compact,
    write_otp,
    write_refusal,
    write_send_error,
)
from server.api.interceptor import Call, ConcurrencyLimit, time_zero
from server.api.otp_records import OtpDependencies, OtpRecords, raw_destination
from server.api.otp_settings import OtpSettings
from server.api.send_requests import SendReader, sends_of
from server.errors import (
    ChannelNotConfigured,
    DestinationBlocked,
    DestinationUnreadable,
    DomainError,
    InvalidDestination,
    OtpNotFound,
    Overloaded,
    WrongCode,
)
from server.otps.admission import NO_METADATA, Admitted, Replayed, Send
from server.otps.destinations import plain_digits
from server.otps.guess_policy import Guess
from server.otps.otp import Delivery, Otp
from server.otps.recipients import ResendRequest, SendRequest
from server.otps.send import Accepted
from server.postgres.batcher import Batcher, attempt, in_steps
from server.postgres.lanes import LOCKED, Locked
from server.traces import Span

_Item = TypeVar("_Item")
_BATCH_RETRY_SECONDS: Final = 0.2
_PREPARED_AT_ONCE: Final = 32
"""Requests of a batch that are prepared or answered in one turn of the event loop: the calls of others wait for it."""
BATCH_PART: Final = 100
"""Requests of a batch that are decided in one transaction."""
_NOT_PREPARED: Final = (ChannelNotConfigured, DestinationBlocked, InvalidDestination)
"""Errors of a request that could not be prepared: it may have been accepted before the settings changed."""


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


_AnySend = _SendCall | _ResendCall
_Decision = Admitted | Replayed | DomainError
_Origin = tuple[datetime | None, Span | None]
"""The deadline and the span of a call."""


class OtpService(OtpRecords, OtpSettings):
    """pulsa.otp.v1.OtpService; each rpc is documented there. OtpRecords and OtpSettings have the others.

    SendOtp, ResendOtp and VerifyOtp run in batches, step by step: all calls of a batch are validated and prepared, then
    decided in one transaction, then answered. Repeating one step keeps its code and data in the processor's caches:
    SendOtp cost a quarter more when each call was validated, prepared and answered separately.
    """

    validates_itself: ClassVar = frozenset({"SendOtp", "VerifyOtp", "BatchSendOtps", "PreviewOtps"})
    """Rpcs whose requests are validated in their batch, or each for itself, not in the interceptor."""

    def __init__(self, dependencies: OtpDependencies) -> None:
        OtpRecords.__init__(self, dependencies)
        OtpSettings.__init__(self, dependencies.settings)
        self._sender = dependencies.sender
        self._verifier = dependencies.verifier
        self._reader = SendReader(dependencies.settings.cache)
        self._answer_templates: dict[tuple[object, ...], pb.SendOtpResponse] = {}
        self._templates_time: datetime | None = None
        """Of the flush that `_answer_templates` belong to."""
        self._free_places = dependencies.free_places
        self._items = ConcurrencyLimit(dependencies.batch_items_at_once)
        self._sends: Batcher[_AnySend, bytes | Replayed] = Batcher(
            self._send_batch, dependencies.batching, name="batch of sends"
        )
        self._batches: Batcher[Sequence[Send], Sequence[_Decision]] = Batcher(
            self._decide_parts,
            replace(dependencies.batching, size=max(1, dependencies.batch_items_per_transaction // BATCH_PART)),
            name="batch of many sends",
        )
        self._guesses: Batcher[_VerifyCall, bytes] = Batcher(
            self._verify_batch, dependencies.batching, name="batch of guesses"
        )

    async def drain(self) -> None:
        """Wait until every submitted call is answered."""
        await self._sends.drain()
        await self._batches.drain()
        await self._guesses.drain()

    async def SendOtp(self, request: pb.SendOtpRequest, call: Call) -> bytes:
        """Charge for a code and send it, or refuse without a charge."""
        if request.validate_only:
            # A preview is about the same request without this field, also for whether it is a repetition.
            request.ClearField("validate_only")
            (preview,) = await self._sender.preview([self._read(request, call)])
            return pb.SendOtpResponse(preview=preview_message(preview)).SerializeToString()
        try:
            answer = await self._sends.submit(request.organization_id, _SendCall(request, call))
        except _NOT_PREPARED:
            repeat = await self._sender.find_repeat(self._read(request, call))
            if repeat is None:
                raise
            return self._send_response(pb.SendOtpResponse(), repeat)
        if isinstance(answer, Replayed):
            return self._send_response(pb.SendOtpResponse(), await self._sender.replay(answer))
        return answer

    async def BatchSendOtps(self, request: pb.BatchSendOtpsRequest, call: Call) -> pb.BatchSendOtpsResponse:
        """Send each OTP or refuse it, as SendOtp does: many are prepared, decided and answered together."""
        organization_id, origin, requests = request.organization_id, self._origin(call), [*sends_of(request)]
        response = pb.BatchSendOtpsResponse()
        with self._hold_places(organization_id, len(requests)):
            prepared: list[Send | Exception] = []
            for part in _parts(requests, _PREPARED_AT_ONCE):
                prepared += self._prepare(part, [origin] * len(part))
                await asyncio.sleep(0)
            decided = await self._decide(organization_id, [one for one in prepared if isinstance(one, Send)])
        for number, (send, one) in enumerate(zip(requests, prepared, strict=True)):
            result = response.results.add()
            answer = one if isinstance(one, Exception) else next(decided)
            if isinstance(answer, Admitted):
                self._write_accepted(result, answer, compact=request.compact)
            else:
                await self._write_other(result, send, answer, compact=request.compact, origin=origin)
            if number % _PREPARED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return response

    async def _decide(self, organization_id: str, sends: Sequence[Send]) -> Iterator[_Decision | Exception]:
        """What became of each send, in order."""
        parts = _parts(sends, BATCH_PART)
        decided = await self._batches.submit_all(organization_id, parts)
        return chain.from_iterable(
            [answer] * len(part) if isinstance(answer, Exception) else answer
            for part, answer in zip(parts, decided, strict=True)
        )

    async def _decide_parts(
        self, parts: Sequence[Sequence[Send]], *, wait: bool
    ) -> list[Sequence[_Decision] | Locked | Exception]:
        """What became of the sends of each part, which are of one organization."""
        decisions = iter(await self._sender.accept([*chain.from_iterable(parts)], wait=wait))
        decided: list[Sequence[_Decision] | Locked | Exception] = []
        for part in parts:
            own = [*islice(decisions, len(part))]
            free = [one for one in own if not isinstance(one, Locked)]
            decided.append(free if len(free) == len(own) else LOCKED)
        return decided

    def _write_accepted(self, result: pb.BatchSendOtpsResult, admitted: Admitted, *, compact: bool) -> None:
        send = admitted.send
        if not compact:
            self._write_admitted(result.response, admitted)
            return
        write_compact(
            result.compact,
            otp_id=send.otp_id,
            delivery_id=send.delivery_id,
            credits=send.recipient.credits,
            ledger_sequence=admitted.ledger_sequence,
        )

    async def _write_other(
        self,
        result: pb.BatchSendOtpsResult,
        request: pb.SendOtpRequest | DomainError,
        answer: Replayed | Exception,
        *,
        compact: bool,
        origin: _Origin,
    ) -> None:
        """Write the first answer to a repeated request, or the error of a refused one. Raises an unexpected error."""
        try:
            if isinstance(answer, Replayed):
                accepted = None if compact else await self._sender.replay(answer)
                self._write_repeat(result, answer.delivery, accepted)
                return
            if isinstance(answer, _NOT_PREPARED) and not isinstance(request, DomainError):
                accepted = await self._sender.find_repeat(self._reader.read(request, *origin))
                if accepted is not None:
                    self._write_repeat(result, accepted.delivery, None if compact else accepted)
                    return
            raise answer
        except DomainError as error:
            write_send_error(result.error, error)

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

    def _write_repeat(self, result: pb.BatchSendOtpsResult, first: Delivery, accepted: Accepted | None) -> None:
        """Write the first answer to a repeated request; in short without `accepted`."""
        if accepted is not None:
            self._write_response(result.response, accepted)
            return
        write_compact(
            result.compact,
            otp_id=first.otp_id,
            delivery_id=first.delivery_id,
            credits=first.credits,
            ledger_sequence=first.ledger_sequence,
        )
        result.compact.replayed = True

    async def PreviewOtps(self, request: pb.PreviewOtpsRequest, call: Call) -> pb.PreviewOtpsResponse:
        """What a batch of these requests would do."""
        origin = self._origin(call)
        response = pb.PreviewOtpsResponse()
        valid: list[tuple[pb.SendPreview, SendRequest]] = []
        for send in sends_of(request):
            message = response.previews.add()
            try:
                if isinstance(send, DomainError):
                    raise send
                valid.append((message, self._reader.read(send, *origin)))
            except DomainError as error:
                write_refusal(message, error)
        previews = await self._sender.preview([send for _, send in valid])
        for (message, _), preview in zip(valid, previews, strict=True):
            message.CopyFrom(preview_message(preview))
            response.total_credits += 0 if preview.refusal else preview.credits
        return response

    async def ResendOtp(self, request: pb.ResendOtpRequest, call: Call) -> bytes:
        """Charge for sending the same code again, and send it."""
        resend = _resend_request(request, self._origin(call))
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
        return await in_steps(calls, prepare=self._prepare_calls, decide=decide, answer=self._answer_send)

    def _prepare_calls(self, calls: Sequence[_AnySend]) -> list[Send | Exception]:
        new = [call for call in calls if isinstance(call, _SendCall)]
        zero = time_zero(self._clock)
        origins = [(call.call.deadline_time(zero), call.call.span) for call in new]
        prepared = iter(self._prepare([call.request for call in new], origins))
        return [next(prepared) if isinstance(call, _SendCall) else call.send for call in calls]

    def _prepare(
        self, requests: Sequence[pb.SendOtpRequest | DomainError], origins: Sequence[_Origin]
    ) -> list[Send | Exception]:
        """The send of each request, or its error."""
        read = [
            request if isinstance(request, DomainError) else attempt(self._reader.read, request, *origin)
            for request, origin in zip(requests, origins, strict=True)
        ]
        prepared = iter(self._sender.prepare([one for one in read if isinstance(one, SendRequest)]))
        return [one if isinstance(one, Exception) else next(prepared) for one in read]

    def _read(self, request: pb.SendOtpRequest, call: Call) -> SendRequest:
        return self._reader.read(request, *self._origin(call))

    def _origin(self, call: Call) -> _Origin:
        return call.deadline_time(time_zero(self._clock)), call.span

    def _answer_send(self, result: Admitted | Replayed, call: _AnySend) -> bytes | Replayed:
        if isinstance(result, Replayed):
            return result
        if isinstance(call, _ResendCall):
            accepted = Accepted(result.record, result.delivery, result.low_balance, replayed=False)
            return self._send_response(pb.ResendOtpResponse(), accepted)
        response = pb.SendOtpResponse()
        self._write_admitted(response, result)
        return response.SerializeToString()

    def _write_admitted(self, response: pb.SendOtpResponse, admitted: Admitted) -> None:
        send = admitted.send
        response.CopyFrom(self._answer_template(admitted))
        otp = response.otp
        otp.organization_id = send.organization_id
        otp.otp_id = str(send.otp_id)
        (delivery,) = otp.deliveries
        delivery.delivery_id = str(send.delivery_id)
        delivery.masked_destination = send.recipient.masked_destination
        if send.metadata != NO_METADATA:
            otp.metadata.update(json.loads(send.metadata))
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
        guess = partial(self._guess, time_zero(self._clock))
        return await in_steps(
            calls,
            prepare=lambda calls: [attempt(guess, call) for call in calls],
            decide=decide,
            answer=self._verify_response,
        )

    def _guess(self, zero: datetime, verify: _VerifyCall) -> Guess:
        request, call = verify
        call.validate(request)
        code = request.code
        return Guess(
            organization_id=request.organization_id,
            otp_id=UUID(request.otp_id),
            request_id=UUID(request.request_id),
            code=code if code.isascii() and code.isdecimal() else plain_digits(code),
            context=request.context,
            deadline=call.deadline_time(zero),
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


def _parts(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _resend_request(request: pb.ResendOtpRequest, origin: _Origin) -> ResendRequest:
    deadline, span = origin
    return ResendRequest(
        organization_id=request.organization_id,
        request_id=UUID(request.request_id),
        otp_id=UUID(request.otp_id),
        destination=raw_destination(request.destination, "destination") if request.HasField("destination") else None,
        deadline=deadline,
        span=span,
    )
