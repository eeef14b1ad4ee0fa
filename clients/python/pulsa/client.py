"""A thin client: the generated stubs with a token, a deadline, safe repeats and typed errors.

    with connect("pulsa.internal:50051", token=token_from_file(Path("/run/secrets/pulsa-token"))) as pulsa:
        pulsa.otps.SendOtp(SendOtpRequest(...))

A call that ends UNAVAILABLE, OVERLOADED, or CANCELLED without being asked to is repeated until its deadline, in at
most 4 attempts. That is safe: every call that spends credits has the caller's request_id, and all attempts have the
same one. VerifyOtp is repeated only when the server did not look at the code, because each guess counts. pulsa.aio does
so for asyncio.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from types import TracebackType
from typing import Any, Self, cast

import grpc

from pulsa.calls import (
    OPTIONS,
    Batch,
    Metadata,
    Pause,
    Rules,
    Token,
    checked_timeout,
    pause_of_overload,
    reopens,
)
from pulsa.credit.v1.credit_service_pb2 import WatchBalanceRequest, WatchBalanceResponse
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.errors import PulsaError, explain
from pulsa.event.v1.event_service_pb2 import WatchEventsRequest, WatchEventsResponse
from pulsa.event.v1.event_service_pb2_grpc import EventServiceStub
from pulsa.otp.v1.otp_service_pb2 import BatchSendOtpsResult, SendOtpRequest
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub


class PulsaClient:
    """Pulsa's services. Thread-safe. Close it after use, or use it in a `with` statement.

    A unary call raises PulsaError, and so does the result of its `future`, which does not wait, and does not repeat
    what is OVERLOADED. A stream raises grpc.RpcError while it is read: pulsa.errors.explain converts it. It ends with
    its token, for the reason TOKEN_INVALID. `watch_balance` opens it again. A request that is not the rpc's message
    raises TypeError, and a timeout that is not above 0 and at most a year ValueError.
    """

    def __init__(self, channel: grpc.Channel, *, token: Token, timeout_seconds: float = 10.0) -> None:
        """`timeout_seconds` is the deadline of unary calls without a timeout of their own, at most a year."""
        checked_timeout(timeout_seconds)
        self._channel = channel
        ours = cast("grpc.Channel", _Channel(channel, token, timeout_seconds))
        self.credits = CreditServiceStub(ours)
        self.otps = OtpServiceStub(ours)
        self.events = EventServiceStub(ours)

    def watch_balance(self, organization_id: str) -> Iterator[WatchBalanceResponse]:
        """Yield the balance now and on each change, for as long as it is asked for.

        Opens the stream again, after a pause, when the server drains, is away or has no room, when a proxy has cut it,
        and when a token expires under it. Raises PulsaError when the server refuses, and ValueError once the client is
        closed.
        """
        return self._reopened(lambda _: self.credits.WatchBalance(WatchBalanceRequest(organization_id=organization_id)))

    def watch_events(
        self, organization_id: str, *, cursor: str = "", from_oldest: bool = False
    ) -> Iterator[WatchEventsResponse]:
        """Yield the organization's events after the cursor, as WatchEvents does, for as long as they are asked for.

        Opens the stream again, as `watch_balance` does, after the last message that was yielded. Store its cursor once
        its events are handled. Raises PulsaError when the server refuses.
        """

        def follow(last: WatchEventsResponse | None) -> Any:
            return self.events.WatchEvents(
                WatchEventsRequest(
                    organization_id=organization_id,
                    cursor=last.cursor if last else cursor,
                    from_oldest=from_oldest,
                )
            )

        return self._reopened(follow)

    def _reopened(self, follow: Callable[[Any], Any]) -> Iterator[Any]:
        """Yield the messages of a stream, and of those that are opened after it; `follow` gets the last message."""
        pause, last = Pause(), None
        while True:
            stream, received = follow(last), False
            try:
                for response in stream:
                    pause, received, last = Pause(), True, response
                    yield response
            except grpc.RpcError as error:
                explained = explain(error)
                if not reopens(explained, received=received):
                    raise explained from error
            finally:
                stream.cancel()
            time.sleep(pause.take())

    def send_batch(
        self,
        organization_id: str,
        requests: Iterable[SendOtpRequest],
        *,
        compact: bool = True,
        progress: Callable[[int], object] = lambda _: None,
        largest: int = 1000,
        patience_seconds: float = 60.0,
    ) -> list[BatchSendOtpsResult]:
        """Send any number of OTPs in calls of at most `largest`, 1 to 1000; returns a result for each, in order.

        Every request needs a request_id. Calls that the server had no room for, or that did not answer, are repeated
        with the same request_ids, and so are requests that could not be decided, until nothing was decided for
        `patience_seconds`: then their errors are the results, and the error of a whole call is raised as PulsaError.
        Sending the same batch again charges nothing twice. `progress` is called with the number of results so far.
        """
        batch = Batch(organization_id, requests, compact=compact, largest=largest, patience_seconds=patience_seconds)
        while request := batch.next():
            try:
                batch.answered(self.otps.BatchSendOtps(request).results)
            except PulsaError as error:
                batch.failed(error)
            time.sleep(batch.pause_seconds)
            progress(batch.decided)
        return batch.results

    def close(self) -> None:
        """Close the connection and cancel calls in progress."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def connect(
    target: str, *, token: Token, credentials: grpc.ChannelCredentials | None = None, timeout_seconds: float = 10.0
) -> PulsaClient:
    """Return a client of the server at `target`, such as `pulsa.internal:50051`.

    `credentials` come from grpc.ssl_channel_credentials. Without them the connection is not encrypted: use this only on
    one machine.
    """
    channel = (
        grpc.secure_channel(target, credentials, options=OPTIONS)
        if credentials
        else grpc.insecure_channel(target, options=OPTIONS)
    )
    return PulsaClient(channel, token=token, timeout_seconds=timeout_seconds)


class _Channel:
    """What a stub needs of a channel, with calls that follow the rules."""

    def __init__(self, channel: grpc.Channel, token: Token, timeout_seconds: float) -> None:
        self._channel = channel
        self._token = token
        self._timeout_seconds = timeout_seconds

    def unary_unary(self, rpc: str, *args: Any, **kwargs: Any) -> "_Unary":
        call = self._channel.unary_unary(rpc, *args, **kwargs)
        return _Unary(call, Rules(rpc, self._token, self._timeout_seconds))

    def unary_stream(self, rpc: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        call, rules = self._channel.unary_stream(rpc, *args, **kwargs), Rules(rpc, self._token, None)

        def stream(request: Any, timeout: float | None = None, metadata: Metadata | None = None, **options: Any) -> Any:
            timeout = rules.check(request, timeout)
            return call(request, timeout=timeout, metadata=rules.metadata(metadata), **options)

        return stream


class _Unary:
    """A unary rpc."""

    def __init__(self, call: Any, rules: Rules) -> None:
        self._call = call
        self._rules = rules

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Metadata | None = None, **options: Any
    ) -> Any:
        response, _ = self.with_call(request, timeout, metadata, **options)
        return response

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Metadata | None = None, **options: Any
    ) -> Any:
        """Return the response and gRPC's call."""
        end = time.monotonic() + (self._rules.check(request, timeout) or 0)
        for attempt in count(1):
            try:
                return self._call.with_call(
                    request, timeout=end - time.monotonic(), metadata=self._rules.metadata(metadata), **options
                )
            except grpc.RpcError as error:
                explained = explain(error)
                pause_seconds = pause_of_overload(explained, attempt=attempt, end=end)
                if pause_seconds is None:
                    raise explained from error
            time.sleep(pause_seconds)
        raise AssertionError

    def future(
        self, request: Any, timeout: float | None = None, metadata: Metadata | None = None, **options: Any
    ) -> "_Future":
        """Begin the call."""
        timeout = self._rules.check(request, timeout)
        return _Future(self._call.future(request, timeout=timeout, metadata=self._rules.metadata(metadata), **options))


class _Future:
    """A call in progress, whose error is a PulsaError. Its other methods are those of gRPC's call."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the response. Raises PulsaError, or what grpc.Future raises for a timeout or a cancelled call."""
        error = self.exception(timeout)
        if error is not None:
            raise error from error.__cause__
        return self._call.result()

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait for the end of the call; returns its PulsaError, or None. Raises as `result` for a timeout."""
        error: Exception | None = self._call.exception(timeout)
        if not isinstance(error, grpc.RpcError):
            return error
        explained = explain(error)
        explained.__cause__ = error
        return explained

    def add_done_callback(self, done: Callable[["_Future"], object]) -> None:
        """Call `done` with this call when it ends, at once if it has."""
        self._call.add_done_callback(lambda _: done(self))
