"""A thin client: the generated stubs with a token, a deadline, safe retries and typed errors.

    with connect("pulsa.internal:50051", token=token_from_file(Path("/run/secrets/pulsa-token"))) as pulsa:
        pulsa.otps.SendOtp(SendOtpRequest(...))

A call that fails with UNAVAILABLE is retried until its deadline, with at most 4 attempts. Retries are safe: every call
that spends credits has the caller's request_id, and all attempts have the same one.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc

from pulsa.credit.v1.credit_service_pb2 import WatchBalanceRequest, WatchBalanceResponse
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.error.v1.error_reason_pb2 import ErrorReason
from pulsa.errors import PulsaError, explain
from pulsa.otp.v1.otp_service_pb2 import BatchSendOtpsRequest, BatchSendOtpsResult, SendOtpRequest
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub

Token = str | Callable[[], str]
"""A token, or a function that returns one for each call; see pulsa.tokens."""

_RETRY_POLICY: Final = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_OPTIONS: Final = [
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRY_POLICY}]})),
    # gRPC retries no request that is larger than this; Pulsa takes 1 MiB.
    ("grpc.per_rpc_retry_buffer_size", 2 * 1024 * 1024),
    # Reconnects soon after a server restart: by default gRPC waits for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_LONGEST_SECONDS: Final = 366 * 86_400.0
"""Of a deadline. gRPC takes a much longer one, such as math.inf, for one that has passed."""
_REOPENED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    # By a proxy that cuts a silent stream: nginx, HAProxy 2, HAProxy 3.
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)
_LARGEST_BATCH_BYTES: Final = 1_000_000
_UNDECIDED: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        ErrorReason.ERROR_REASON_ACCOUNT_BUSY,
        ErrorReason.ERROR_REASON_SERVER_DRAINING,
    }
)
"""Errors of a request of a batch after which it is sent again."""
_REPEATED: Final = frozenset({"OVERLOADED", "DATABASE_UNAVAILABLE", "ACCOUNT_BUSY", "SERVER_DRAINING", ""})
"""Reasons of a whole batch's error after which it is sent again; none when no server has answered."""
_SHORTEST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0


class PulsaClient:
    """Pulsa's services. Thread-safe. Close it after use, or use it in a `with` statement.

    A unary call raises PulsaError, and so does the result of its `future`, which does not wait. A stream raises
    grpc.RpcError while it is read: pulsa.errors.explain converts it. It ends with its token, for the reason
    TOKEN_INVALID. `watch_balance` opens it again.
    """

    def __init__(self, channel: grpc.Channel, *, token: Token, timeout_seconds: float = 10.0) -> None:
        """`timeout_seconds` is the deadline of unary calls without a timeout of their own; more than a year is none."""
        self._channel = channel
        provider = (lambda: token) if isinstance(token, str) else token
        intercepted = grpc.intercept_channel(channel, _Interceptor(provider, timeout_seconds))
        self.credits = CreditServiceStub(intercepted)
        self.otps = OtpServiceStub(intercepted)

    def watch_balance(self, organization_id: str) -> Iterator[WatchBalanceResponse]:
        """Yield the balance now and on each change, for as long as it is asked for.

        Opens the stream again, after a pause, when the server drains or is away, when a proxy has cut it, and when a
        token expires under it. Raises PulsaError when the server refuses, and ValueError once the client is closed.
        """
        pause_seconds = _SHORTEST_PAUSE_SECONDS
        while True:
            stream, received = self.credits.WatchBalance(WatchBalanceRequest(organization_id=organization_id)), False
            try:
                for response in stream:
                    pause_seconds, received = _SHORTEST_PAUSE_SECONDS, True
                    yield response
            except grpc.RpcError as error:
                explained = explain(error)
                refused = explained.code not in _REOPENED or explained.reason == "INTERNAL"
                if refused and not (received and explained.code is grpc.StatusCode.UNAUTHENTICATED):
                    raise explained from error
            finally:
                stream.cancel()
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)

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
        requests = list(requests)
        results: list[BatchSendOtpsResult] = [BatchSendOtpsResult()] * len(requests)
        waiting, pause_seconds = list(range(len(requests))), _SHORTEST_PAUSE_SECONDS
        end = time.monotonic() + patience_seconds
        while waiting:
            chunk = _first_chunk(waiting[:largest], requests)
            request = BatchSendOtpsRequest(
                organization_id=organization_id, requests=[requests[number] for number in chunk], compact=compact
            )
            undecided: list[int] = []
            try:
                for number, result in zip(chunk, self.otps.BatchSendOtps(request).results, strict=True):
                    results[number] = result
                    if result.error.reason in _UNDECIDED:
                        undecided.append(number)
            except PulsaError as error:
                if error.reason not in _REPEATED or time.monotonic() >= end:
                    raise
                undecided = chunk
            waiting = undecided + waiting[len(chunk) :]
            if len(undecided) < len(chunk):
                end, pause_seconds = time.monotonic() + patience_seconds, _SHORTEST_PAUSE_SECONDS
            elif time.monotonic() >= end:
                return results
            if undecided:
                time.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
            progress(len(requests) - len(waiting))
        return results

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
        grpc.secure_channel(target, credentials, options=_OPTIONS)
        if credentials
        else grpc.insecure_channel(target, options=_OPTIONS)
    )
    return PulsaClient(channel, token=token, timeout_seconds=timeout_seconds)


def _first_chunk(waiting: Sequence[int], requests: Sequence[SendOtpRequest]) -> list[int]:
    """The first of the waiting numbers: as many as fit into one call."""
    chunk: list[int] = []
    size = 0
    for number in waiting:
        size += requests[number].ByteSize() + 8
        if chunk and size > _LARGEST_BATCH_BYTES:
            break
        chunk.append(number)
    return chunk


@dataclass(frozen=True, slots=True)
class _Details(grpc.ClientCallDetails):
    """The details of a call."""

    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _ExplainedCall:
    """A unary call, finished or not, whose error is a PulsaError. Its other methods are those of gRPC's call."""

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

    def add_done_callback(self, done: Callable[["_ExplainedCall"], object]) -> None:
        """Call `done` with this call when it ends, at once if it has."""
        self._call.add_done_callback(lambda _: done(self))


class _Interceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, token: Callable[[], str], timeout_seconds: float) -> None:
        self._token = token
        self._timeout_seconds = timeout_seconds

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        timeout = client_call_details.timeout
        details = self._details(client_call_details, self._timeout_seconds if timeout is None else timeout)
        return _ExplainedCall(continuation(details, request))

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._details(client_call_details, client_call_details.timeout), request)

    def _details(self, details: Any, timeout: float | None) -> _Details:
        """The details with a token, and without a deadline that gRPC cannot represent."""
        return _Details(
            details.method,
            None if timeout is not None and timeout > _LONGEST_SECONDS else timeout,
            (*(details.metadata or ()), ("authorization", f"Bearer {self._token()}")),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
