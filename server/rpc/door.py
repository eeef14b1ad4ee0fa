"""What every call passes: room, deadline, the caller's token, permission and organization, the shape of its fields.

One coroutine around each servicer method, as every interceptor of grpc.aio costs a coroutine of its own per call. A
servicer is a plain class with a coroutine per rpc, named as the rpc: `async def SendOtp(self, request, call)`, that
gives the response or its bytes; a streaming rpc is an async generator. It may name rpcs in `checks_itself`: those call
`call.check(request)` before they look at any field but organization_id, wherever that is cheaper than at the door.
"""

import asyncio
import inspect
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry

from server.errors import (
    DomainError,
    FieldViolation,
    InvalidFields,
    OrganizationMismatch,
    Overloaded,
    PermissionMissing,
    TokenInvalid,
)
from server.ids import new_id
from server.rpc.journal import Journal
from server.rpc.metrics import RpcCounts, RpcMetrics
from server.rpc.permissions import PERMISSIONS
from server.rpc.places import GuardedHandler, GuardedHandlers, Metadata, Places, refusing_handler
from server.rpc.status import Failure, deadline_failure, failure_of, internal_failure
from server.rpc.tokens import ANY_ORGANIZATION, Caller, TokenVerifier
from server.rpc.validation import Validate, compile_validation

Context = grpc.aio.ServicerContext[Any, Any]

_LONGEST_WAIT_SECONDS: Final = 86_400.0
"""A later deadline is none: gRPC's reach beyond the years that there are."""


class Call(NamedTuple):
    """What a servicer knows about a call beside its request."""

    caller: Caller
    deadline: float
    """When the caller stops waiting, in seconds of Unix time; math.inf when it waits for more than a day."""
    check: Validate
    """Raises InvalidFields for a request that breaks a rule. The door calls it, but for rpcs that do so themselves."""


@dataclass(frozen=True, slots=True)
class _Rpc:
    """One rpc, with everything that its calls need found in advance."""

    name: str
    permission: str
    method: Callable[[Any, Call], Any]
    parse: Callable[[bytes], Any]
    request_name: str
    has_organization: bool
    validate: Validate
    checks_itself: bool
    streams: bool
    places: Places
    counts: RpcCounts

    def read(self, payload: bytes, caller: Caller) -> Any:
        """The request, if this caller may make it and, but for rpcs that check it, as the rules want it.

        Raises InvalidFields and OrganizationMismatch.
        """
        try:
            request = self.parse(payload)
        except DecodeError:
            raise InvalidFields(violations=(FieldViolation("", f"not a {self.request_name}"),)) from None
        if self.has_organization and caller.organization_id not in (request.organization_id, ANY_ORGANIZATION):
            raise OrganizationMismatch
        if not self.checks_itself:
            self.validate(request)
        return request


class Door:
    """Lets calls in to the servicers, and tells callers how they ended."""

    def __init__(
        self,
        verifier: TokenVerifier,
        *,
        registry: CollectorRegistry,
        calls_at_once: int = 512,
        streams_at_once: int = 1000,
        overload_retry_seconds: float = 1.0,
    ) -> None:
        self._verifier = verifier
        self._calls = Places(calls_at_once)
        self._streams = Places(streams_at_once)
        self.metrics = RpcMetrics(registry, in_flight=lambda: self._calls.taken + self._streams.taken)
        self._journal = Journal()
        self._overloaded = failure_of(Overloaded(retry_after_seconds=overload_retry_seconds))
        self._too_late = deadline_failure()
        self._open_streams: set[asyncio.Task[Any]] = set()
        self._closing = False

    def handler(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to serve this service.

        Raises LookupError for an rpc without a permission, a method or a rule for each of its fields, and for a
        permission without an rpc: what is not guarded does not start.
        """
        permissions = PERMISSIONS[service.full_name]
        unmatched = set(permissions) ^ {method.name for method in service.methods}
        if unmatched:
            raise LookupError(f"permissions.py and the proto of {service.full_name} differ in {sorted(unmatched)}")
        return GuardedHandlers(
            {
                f"/{service.full_name}/{method.name}": self._method_handler(method, permissions[method.name], servicer)
                for method in service.methods
            }
        )

    def end_streams(self) -> None:
        """End every stream with OK, and new ones at once: for a server that is going down."""
        self._closing = True
        for task in self._open_streams:
            task.cancel()

    def _method_handler(self, descriptor: MethodDescriptor, permission: str, servicer: object) -> GuardedHandler:
        method: Any = getattr(servicer, descriptor.name, None)
        is_right_kind = inspect.isasyncgenfunction if descriptor.server_streaming else inspect.iscoroutinefunction
        if not is_right_kind(method):
            raise LookupError(f"{type(servicer).__name__} has no asynchronous method {descriptor.name}")
        request = descriptor.input_type
        rpc = _Rpc(
            name=descriptor.name,
            permission=permission,
            method=method,
            parse=GetMessageClass(request).FromString,
            request_name=request.full_name,
            has_organization="organization_id" in request.fields_by_name,
            validate=compile_validation(request),
            checks_itself=descriptor.name in getattr(servicer, "checks_itself", ()),
            streams=descriptor.server_streaming,
            places=self._streams if descriptor.server_streaming else self._calls,
            counts=self.metrics.of(descriptor.name),
        )
        kind = grpc.unary_stream_rpc_method_handler if rpc.streams else grpc.unary_unary_rpc_method_handler
        refuse = refusing_handler(self._overloaded, lambda: self._ended(rpc, self._overloaded, None, None, 0.0))
        handle = self._handle(rpc)
        return GuardedHandler(rpc.places, lambda metadata: kind(partial(handle, metadata)), refuse)

    def _handle(self, rpc: _Rpc) -> Callable[[Metadata, bytes, Context], Awaitable[bytes]]:
        """The coroutine that a call of this rpc runs in. Bytes in and out, so that parsing is ours to answer for."""
        places, method, read, permission = rpc.places, rpc.method, rpc.read, rpc.permission

        async def handle(metadata: Metadata, payload: bytes, context: Context) -> bytes:
            started = time.monotonic()
            caller = request = failure = None
            answer = b""
            places.taken += 1
            try:
                if places.taken > places.limit:  # others came in while this one's request was read
                    failure = self._overloaded
                elif (seconds_left := _seconds_left(context)) <= 0:
                    failure = self._too_late
                else:
                    caller = self._caller(metadata, permission)
                    request = read(payload, caller)
                    call = Call(caller, time.time() + seconds_left, rpc.validate)
                    if rpc.streams:
                        await self._stream(method(request, call), context)
                    else:
                        response = await method(request, call)
                        answer = response if isinstance(response, bytes) else response.SerializeToString()
            except DomainError as error:
                failure = failure_of(error)
            except asyncio.CancelledError:
                rpc.counts.ended(grpc.StatusCode.CANCELLED, time.monotonic() - started)
                raise
            except Exception as error:  # noqa: BLE001 - the one place where the unexpected is logged and answered
                failure = self._incident(rpc, error)
            finally:
                places.taken -= 1
            self._ended(rpc, failure, caller, request, time.monotonic() - started)
            if failure is not None:
                await context.abort(failure.code, failure.message, failure.trailing_metadata)
            return answer

        return handle

    def _caller(self, metadata: Metadata, permission: str) -> Caller:
        """Who calls. Raises TokenInvalid, and PermissionMissing when it may not."""
        caller = self._verifier.verify(_bearer_token(metadata))
        if permission not in caller.permissions:
            raise PermissionMissing(permission=permission)
        return caller

    async def _stream(self, responses: AsyncGenerator[Any, None], context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of grpc.aio always runs in a task
        self._open_streams.add(task)
        try:
            async with aclosing(responses):
                if self._closing:
                    return
                async for response in responses:
                    await context.write(response.SerializeToString())
        except asyncio.CancelledError:
            if not self._closing:
                raise
            task.uncancel()
        finally:
            self._open_streams.discard(task)

    def _incident(self, rpc: _Rpc, error: Exception) -> Failure:
        incident_id = str(new_id())
        self._journal.incident(rpc.name, incident_id, error)
        return internal_failure(incident_id)

    def _ended(self, rpc: _Rpc, failure: Failure | None, caller: Caller | None, request: Any, seconds: float) -> None:
        rpc.counts.ended(grpc.StatusCode.OK if failure is None else failure.code, seconds)
        if failure is self._overloaded:
            self._journal.overloaded()
        elif failure is not None or self._journal.tells_all:
            organization_id = getattr(request, "organization_id", "") or (caller.organization_id if caller else "")
            subject = caller.subject if caller else ""
            self._journal.ended(rpc.name, failure, organization_id=organization_id, subject=subject, seconds=seconds)


def _seconds_left(context: Any) -> float:
    """Until the call's deadline; infinite when it has none, which the type stubs of grpc forget."""
    seconds: float | None = context.time_remaining()
    return math.inf if seconds is None or seconds > _LONGEST_WAIT_SECONDS else seconds


def _bearer_token(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer":
                return token
    raise TokenInvalid
