"""Checks every call before its servicer gets it: concurrency limit, deadline, token, permission, organization, fields.

One coroutine wraps each servicer method: each interceptor of grpc.aio would add a coroutine per call. A servicer is a
plain class with one coroutine per rpc, named like the rpc: `async def SendOtp(self, request, call)`. It returns the
response or its bytes; a streaming rpc is an async generator. A servicer may list rpcs in `validates_itself`: these call
`call.validate(request)` before they read any field but organization_id, where validating later costs less.
"""

import asyncio
import inspect
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry

from server.api.auth import ANY_ORGANIZATION, Caller, TokenVerifier
from server.api.permissions import PERMISSIONS
from server.api.status import ErrorStatus, error_status, internal_error_status
from server.api.telemetry import AccessLog, RpcCounters, RpcMetrics
from server.api.validation import Validate, compile_validation
from server.clock import Clock
from server.errors import (
    DeadlineExceeded,
    DomainError,
    FieldViolation,
    InvalidFields,
    OrganizationMismatch,
    Overloaded,
    PermissionMissing,
    ServerDraining,
    TokenInvalid,
)
from server.ids import new_id
from server.traces import Metadata, Span, Traces, current_span

_SHARE: Final = 4
"""An organization may have this many times as many calls in flight as there are free places: 4/5 of all places when it
is alone, 4/9 when two compete, and a newcomer always finds a place."""
_RESERVE: Final = 8
"""One place in 8 is not for sends: under overload a VerifyOtp or GetBalance goes before a SendOtp."""
_SENDS: Final = ("SendOtp", "ResendOtp")
_TOKEN_CHECK_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 0.02
_QUIET_PERIODS: Final = 3
_REFUSING_SECONDS: Final = 1.0


@dataclass(slots=True)
class ConcurrencyLimit:
    """The calls or items in flight, in all and by organization, and their maximum. They count before they enter."""

    limit: int
    in_flight: int = 0
    by_organization: dict[str, int] = field(default_factory=dict)

    def enter(self, organization_id: str, count: int = 1) -> bool:
        """Count a call of the organization, or so many items; False when it has its share of the places already."""
        own = self.by_organization.get(organization_id, 0)
        if own + count > _SHARE * (self.limit - self.in_flight + count):
            return False
        self.by_organization[organization_id] = own + count
        return True

    def leave(self, organization_id: str, count: int = 1) -> None:
        """The call of the organization, or so many items, have ended."""
        own = self.by_organization[organization_id] - count
        if own:
            self.by_organization[organization_id] = own
        else:
            del self.by_organization[organization_id]


@dataclass(frozen=True, slots=True)
class LimitedHandler:
    """The handlers of one rpc: one for calls within its concurrency limit, one for calls above it."""

    concurrency: ConcurrencyLimit
    limit: int
    serve: Callable[[Metadata], "grpc.RpcMethodHandler[Any, Any]"]
    """Takes the call's metadata, because the call's context builds it again at each access."""
    refuse: "grpc.RpcMethodHandler[Any, Any]"
    drain: "grpc.RpcMethodHandler[Any, Any]"
    """Ends calls that begin while the server is stopping."""


class LimitedHandlers(grpc.GenericRpcHandler):
    """Selects the handler of a call by the path of its rpc."""

    def __init__(self, handlers: Mapping[str, LimitedHandler]) -> None:
        self._handlers = handlers
        self.draining = False

    def service(self, handler_call_details: Any) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a call that has just arrived; None for an unknown rpc."""
        handler = self._handlers.get(handler_call_details.method)
        if handler is None:
            return None
        if self.draining:
            return handler.drain
        if handler.concurrency.in_flight >= handler.limit:
            return handler.refuse
        return handler.serve(handler_call_details.invocation_metadata)


def refusing_handler(status: ErrorStatus, refused: Callable[[], None]) -> "grpc.RpcMethodHandler[Any, Any]":
    """Return a handler that ends each call with `status` and calls `refused`, as cheaply as grpc.aio allows.

    A stream handler need not read the request, and returning costs less than aborting, which raises: 170 µs of the
    event loop's thread instead of 260; an empty successful call takes 170 µs.
    """

    async def refuse(_requests: Any, context: Any) -> None:
        _set_status(context, status)
        refused()

    return grpc.stream_stream_rpc_method_handler(refuse)


def _set_status(context: Any, status: ErrorStatus) -> None:
    """End the call with this status when its handler returns.

    `context.abort` would leave the call, with its request and its error, to the garbage collector.
    """
    context.set_code(status.code)
    context.set_details(status.message)
    context.set_trailing_metadata(status.trailing_metadata)


Context = grpc.aio.ServicerContext[Any, Any]

_Handle = Callable[[Metadata, bytes, Context], Awaitable[bytes]]
_Serve = Callable[[Metadata], "grpc.RpcMethodHandler[Any, Any]"]
_MAXIMUM_DEADLINE_SECONDS: Final = 86_400.0
"""A later deadline counts as none: the deadlines of gRPC exceed the range of datetime."""
_SURELY_IN_TIME: Final = 0.98
"""Of a call's seconds: gRPC rounds the caller's up by as much as 1 % on the way."""


class Call(NamedTuple):
    """What a servicer gets of a call besides the request."""

    caller: Caller
    deadline: float
    """In seconds of time.monotonic(); math.inf for a deadline more than a day away, or none."""
    validate: Validate
    """Raises InvalidFields for an invalid request. Already called, except for rpcs in `validates_itself`."""
    span: Span | None = None
    """None when the call is not sampled."""

    def deadline_time(self, time_zero: datetime) -> datetime | None:
        """When the call ends; None without a deadline."""
        return None if self.deadline == math.inf else time_zero + timedelta(seconds=self.deadline)


def time_zero(clock: Clock) -> datetime:
    """The time at which time.monotonic() was 0."""
    return clock() - timedelta(seconds=time.monotonic())


@dataclass(frozen=True, slots=True)
class _Rpc:
    """One rpc, with everything its calls need, looked up at start."""

    name: str
    permission: str
    method: Callable[[Any, Call], Any]
    parse: Callable[[bytes], Any]
    request_name: str
    has_organization: bool
    validate: Validate
    validates_itself: bool
    streams: bool
    concurrency: ConcurrencyLimit
    limit: int
    """The most calls in flight, of all rpcs together, with which a call of this one is served."""
    counters: RpcCounters

    def read(self, payload: bytes, caller: Caller) -> Any:
        """Parse a request, check its organization, and validate it unless the rpc validates itself.

        Raises InvalidFields and OrganizationMismatch.
        """
        try:
            request = self.parse(payload)
        except DecodeError:
            raise InvalidFields(violations=(FieldViolation("", f"not a {self.request_name}"),)) from None
        if self.has_organization and caller.organization_id not in (request.organization_id, ANY_ORGANIZATION):
            raise OrganizationMismatch
        if not self.validates_itself:
            self.validate(request)
        return request

    def count(self, code: grpc.StatusCode, seconds: float) -> None:
        """Count a finished call and its duration."""
        self.counters.ended[code].inc()
        self.counters.duration.observe(seconds)


class Interceptor:
    """Checks calls, passes them to the servicers and returns their responses or errors."""

    def __init__(
        self,
        verifier: TokenVerifier,
        *,
        registry: CollectorRegistry,
        calls_at_once: int = 512,
        streams_at_once: int = 1000,
        overload_retry_seconds: float = 1.0,
        traces: Traces | None = None,
    ) -> None:
        """Without `traces` no call is sampled."""
        self._verifier = verifier
        self._traces = traces
        self._calls = ConcurrencyLimit(calls_at_once)
        self._streams = ConcurrencyLimit(streams_at_once)
        self.metrics = RpcMetrics(registry, in_flight=lambda: self._calls.in_flight + self._streams.in_flight)
        self._access_log = AccessLog()
        self._overloaded = error_status(Overloaded(retry_after_seconds=overload_retry_seconds))
        self._deadline_passed = error_status(DeadlineExceeded())
        self._draining = error_status(ServerDraining(retry_after_seconds=overload_retry_seconds))
        self._handlers: list[LimitedHandlers] = []
        self._calls_refused = 0
        """While draining."""
        self._running: set[asyncio.Task[Any]] = set()
        """The tasks of unary calls in flight."""
        self._ending = False
        self._open_streams: dict[asyncio.Task[Any], Caller] = {}
        self._closing = False

    def handler(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Return the gRPC handler of a service.

        Raises LookupError for an rpc without a permission, a method, or a validation rule for each of its fields, and
        for a permission without an rpc.
        """
        permissions = PERMISSIONS[service.full_name]
        unmatched = set(permissions) ^ {method.name for method in service.methods}
        if unmatched:
            raise LookupError(f"permissions.py and the proto of {service.full_name} differ in {sorted(unmatched)}")
        handlers = LimitedHandlers(
            {
                f"/{service.full_name}/{method.name}": self._method_handler(method, permissions[method.name], servicer)
                for method in service.methods
            }
        )
        self._handlers.append(handlers)
        return handlers

    async def refuse_calls(self) -> None:
        """End calls that begin from now on with SERVER_DRAINING; returns once none is left of those that wait in gRPC.

        gRPC would end those as CANCELLED, which callers do not repeat.
        """
        for handlers in self._handlers:
            handlers.draining = True
        quiet, end = 0, time.monotonic() + _REFUSING_SECONDS
        while quiet < _QUIET_PERIODS and (began := time.monotonic()) < end:
            refused = self._calls_refused
            await asyncio.sleep(_QUIET_SECONDS)
            # A period that took longer says nothing: the processor was busy, and calls may wait for it.
            is_quiet = refused == self._calls_refused and time.monotonic() - began < 2 * _QUIET_SECONDS
            quiet = quiet + 1 if is_quiet else 0

    def end_calls(self) -> None:
        """End the unary calls in flight with SERVER_DRAINING."""
        self._ending = True
        for task in self._running:
            task.cancel()

    def end_streams(self) -> None:
        """End all open streams with OK, and later ones as soon as they start; called at shutdown."""
        self._closing = True
        for task in self._open_streams:
            task.cancel()

    async def end_streams_with_their_tokens(self) -> None:
        """End each stream within a second of the end of its token, or of the removal of its key, until cancelled.

        The caller gets TokenInvalid, as for a call with that token.
        """
        while True:
            await asyncio.sleep(_TOKEN_CHECK_SECONDS)
            for task, caller in self._open_streams.items():
                if not self._verifier.still_accepts(caller):
                    task.cancel()

    def _method_handler(self, descriptor: MethodDescriptor, permission: str, servicer: object) -> LimitedHandler:
        method: Any = getattr(servicer, descriptor.name, None)
        is_right_kind = inspect.isasyncgenfunction if descriptor.server_streaming else inspect.iscoroutinefunction
        if not is_right_kind(method):
            raise LookupError(f"{type(servicer).__name__} has no asynchronous method {descriptor.name}")
        request = descriptor.input_type
        concurrency = self._streams if descriptor.server_streaming else self._calls
        reserved = concurrency.limit // _RESERVE if descriptor.name in _SENDS else 0
        rpc = _Rpc(
            name=descriptor.name,
            permission=permission,
            method=method,
            parse=GetMessageClass(request).FromString,
            request_name=request.full_name,
            has_organization="organization_id" in request.fields_by_name,
            validate=compile_validation(request),
            validates_itself=descriptor.name in getattr(servicer, "validates_itself", ()),
            streams=descriptor.server_streaming,
            concurrency=concurrency,
            limit=concurrency.limit - reserved,
            counters=self.metrics.of(descriptor.name),
        )
        kind = grpc.unary_stream_rpc_method_handler if rpc.streams else grpc.unary_unary_rpc_method_handler
        refuse = refusing_handler(self._overloaded, lambda: self._ended(rpc, self._overloaded, None, None, 0.0))
        drain = refusing_handler(self._draining, partial(self._refused, rpc))
        handle = self._handle(rpc)
        serve: _Serve = lambda metadata: kind(partial(handle, metadata))  # noqa: E731 - replaced below
        if self._traces is not None and not rpc.streams:  # a stream may stay open for days
            serve = _traced(self._traces, descriptor, handle, serve)
        return LimitedHandler(rpc.concurrency, rpc.limit, serve, refuse, drain)

    def _handle(self, rpc: _Rpc) -> _Handle:
        """Return the coroutine function that serves calls of the rpc.

        It takes and returns bytes, so that parse errors are answered here and not by gRPC.
        """
        concurrency, has_organization = rpc.concurrency, rpc.has_organization
        method, read, permission = rpc.method, rpc.read, rpc.permission

        running, streams = self._running, rpc.streams

        async def handle(metadata: Metadata, payload: bytes, context: Context) -> bytes:
            started = time.monotonic()
            caller = request = status = None
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - a coroutine of grpc.aio always runs in a task
            answer, organization, entered = b"", "", False
            concurrency.in_flight += 1
            try:
                seconds_left = _seconds_left(context)
                status = self._refusal(rpc, seconds_left)
                if status is None:
                    caller = self._caller(metadata, permission)
                    request = read(payload, caller)
                    call = Call(caller, started + seconds_left, rpc.validate, current_span())
                    if has_organization and not (entered := concurrency.enter(organization := request.organization_id)):
                        status = self._overloaded
                    elif streams:
                        await self._stream(method(request, call), caller, context, task)
                    else:
                        running.add(task)
                        response = await method(request, call)
                        answer = response if isinstance(response, bytes) else response.SerializeToString()
            except DomainError as error:
                status = error_status(error)
            except asyncio.CancelledError:
                status = self._cancelled(rpc, task, time.monotonic() - started, seconds_left)
            except Exception as error:  # noqa: BLE001 - the one place where the unexpected is logged and answered
                status = self._incident(rpc, error)
            finally:
                concurrency.in_flight -= 1
                running.discard(task)
                if entered:
                    concurrency.leave(organization)
            self._ended(rpc, status, caller, request, time.monotonic() - started)
            if status is not None:
                _set_status(context, status)
            return answer

        return handle

    def _refusal(self, rpc: _Rpc, seconds_left: float) -> ErrorStatus | None:
        """The status of a call that is refused before its request is read."""
        if rpc.concurrency.in_flight > rpc.limit:  # other calls started while gRPC read this request
            return self._overloaded
        return self._deadline_passed if seconds_left <= 0 else None

    def _caller(self, metadata: Metadata, permission: str) -> Caller:
        """Return the caller. Raises TokenInvalid, and PermissionMissing when the token lacks the permission."""
        caller = self._verifier.verify(_bearer_token(metadata))
        if permission not in caller.permissions:
            raise PermissionMissing(permission=permission)
        return caller

    async def _stream(
        self, responses: AsyncGenerator[Any, None], caller: Caller, context: Context, task: asyncio.Task[Any]
    ) -> None:
        self._open_streams[task] = caller
        try:
            async with aclosing(responses):
                if self._closing:
                    return
                async for response in responses:
                    await context.write(response.SerializeToString())
        except asyncio.CancelledError:
            has_token = self._verifier.still_accepts(caller)
            if has_token and not self._closing:
                raise
            task.uncancel()
            if not has_token:
                raise TokenInvalid from None
        finally:
            del self._open_streams[task]

    def _cancelled(self, rpc: _Rpc, task: asyncio.Task[Any], seconds: float, seconds_left: float) -> ErrorStatus:
        """The status of a call that `end_calls` cancelled. Raises CancelledError again for a caller that went away.

        Such a caller's time was over, or it did not want the answer any more; a stream is ended like that.
        """
        if not self._ending or task not in self._running:
            in_time = rpc.streams or seconds < seconds_left * _SURELY_IN_TIME
            rpc.count(grpc.StatusCode.CANCELLED if in_time else grpc.StatusCode.DEADLINE_EXCEEDED, seconds)
            raise  # noqa: PLE0704 - called while the error is handled
        task.uncancel()
        return self._draining

    def _refused(self, rpc: _Rpc) -> None:
        self._calls_refused += 1
        self._ended(rpc, self._draining, None, None, 0.0)

    def _incident(self, rpc: _Rpc, error: Exception) -> ErrorStatus:
        incident_id = str(new_id())
        self._access_log.incident(rpc.name, incident_id, error)
        return internal_error_status(incident_id)

    def _ended(
        self, rpc: _Rpc, status: ErrorStatus | None, caller: Caller | None, request: Any, seconds: float
    ) -> None:
        rpc.count(grpc.StatusCode.OK if status is None else status.code, seconds)
        if status is not None and status.reason == Overloaded.reason:
            self.metrics.overloaded.inc()
            self._access_log.overloaded(rpc.concurrency.by_organization)
        elif status is not None or self._access_log.logs_successes:
            organization_id = getattr(request, "organization_id", "") or (caller.organization_id if caller else "")
            subject = caller.subject if caller else ""
            self._access_log.ended(rpc.name, status, organization_id=organization_id, subject=subject, seconds=seconds)


def _traced(traces: Traces, rpc: MethodDescriptor, handle: _Handle, serve: _Serve) -> _Serve:
    """As `serve`, with a span for each sampled call."""
    name = f"{rpc.containing_service.full_name}/{rpc.name}"

    async def handle_sampled(span: Span, metadata: Metadata, payload: bytes, context: Any) -> bytes:
        span.enter()
        code = grpc.StatusCode.CANCELLED
        try:
            answer = await handle(metadata, payload, context)
            code = context.code() or grpc.StatusCode.OK
            return answer
        finally:
            span.end_call(code.name)

    def serve_traced(metadata: Metadata) -> "grpc.RpcMethodHandler[Any, Any]":
        span = traces.begin_call(name, metadata)
        if span is None:
            return serve(metadata)
        return grpc.unary_unary_rpc_method_handler(partial(handle_sampled, span, metadata))

    return serve_traced


def _seconds_left(context: Any) -> float:
    """Return the seconds until the call's deadline; infinite without one, which the type stubs of grpc lack."""
    seconds: float | None = context.time_remaining()
    return math.inf if seconds is None or seconds > _MAXIMUM_DEADLINE_SECONDS else seconds


def _bearer_token(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                return token
    raise TokenInvalid
