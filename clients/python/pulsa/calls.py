"""What pulsa.client and pulsa.aio do alike: tokens, deadlines, what is repeated, and batches."""

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import grpc
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pulsa.credit.v1 import credit_service_pb2
from pulsa.error.v1.error_reason_pb2 import ErrorReason
from pulsa.errors import PulsaError
from pulsa.event.v1 import event_service_pb2
from pulsa.otp.v1 import otp_service_pb2
from pulsa.otp.v1.otp_service_pb2 import BatchSendOtpsRequest, BatchSendOtpsResult, SendOtpRequest

Token = str | Callable[[], str]
"""A token, or a function that returns one for each call; see pulsa.tokens."""
Metadata = Sequence[tuple[str, str | bytes]]
"""Of a call."""

_ATTEMPTS: Final = 4
_RETRY_POLICY: Final = {
    "maxAttempts": _ATTEMPTS,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    # Not asked for, CANCELLED is of a server that has no room to look at the call, or that is stopped.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
_STREAMS: Final = [
    {"service": service.full_name, "method": rpc.name}
    for file in (credit_service_pb2, event_service_pb2, otp_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
    if rpc.server_streaming
]
_METHODS: Final = [
    {"name": [{}], "retryPolicy": _RETRY_POLICY},
    # Each guess at a code counts, also one whose answer was lost.
    {"name": [{"service": "pulsa.otp.v1.OtpService", "method": "VerifyOtp"}]},
    # In grpcio 1.85 a stream whose first attempt was refused may never end when gRPC repeats it.
    {"name": _STREAMS},
]
OPTIONS: Final = [
    # Of a name with several addresses, each call goes to the next one; by default all go to the first.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": _METHODS})),
    # gRPC retries no request that is larger than this; Pulsa takes 1 MiB.
    ("grpc.per_rpc_retry_buffer_size", 2 * 1024 * 1024),
    # Reconnects soon after a server restart: by default gRPC waits for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name how long a connection may take to open, TLS included: 20 s by default.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # Notices within 25 s that the server has fallen silent: by default a stream never does. What counts is the time-out
    # of pings, a minute by default, and that an idle stream may send more than two of them.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]
"""Of a channel."""
_REFUSED_STREAM: Final = "RST_STREAM with error code 7"
"""In grpcio's message of a call that the server did not look at. A gRPC server does so while ended calls of the
connection are not freed, also to a client that keeps to its limit: of 10,000 calls at once some fail 4 attempts."""
_LONGEST_TIMEOUT_SECONDS: Final = 366 * 86_400.0
"""gRPC takes a much longer one, such as math.inf, for one that has passed."""
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
_REPEATED: Final = frozenset({"OVERLOADED", "DATABASE_UNAVAILABLE", "ACCOUNT_BUSY", "SERVER_DRAINING"})
"""Reasons of a whole batch's error after which it is sent again."""
_UNANSWERED: Final = (*_REOPENED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Codes after which it is, when the error has no reason: no server has answered."""


class Pause:
    """A pause that doubles each time, from 0.1 to 5 s."""

    seconds = 0.1

    def take(self) -> float:
        """The seconds to wait now."""
        taken, self.seconds = self.seconds, min(2 * self.seconds, 5.0)
        return taken


class Rules:
    """What every call of one rpc of a client gets."""

    def __init__(self, rpc: str, token: Token, timeout_seconds: float | None) -> None:
        """`rpc` is the path of a call; `timeout_seconds` the deadline of calls without a timeout of their own."""
        self._request: type[Message] = GetMessageClass(Default().FindMethodByName(rpc[1:].replace("/", ".")).input_type)
        self._token = token
        self._timeout_seconds = timeout_seconds

    def check(self, request: object, timeout: float | None) -> float | None:
        """Return the timeout. Raises TypeError and ValueError for what gRPC would send as something else."""
        if type(request) is not self._request:
            raise TypeError(f"{type(request).__qualname__} is not {self._request.DESCRIPTOR.full_name}")
        return checked_timeout(self._timeout_seconds if timeout is None else timeout)

    def metadata(self, metadata: Metadata | None) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata of one attempt, with a token."""
        token = self._token if isinstance(self._token, str) else self._token()
        return (*(metadata or ()), ("authorization", f"Bearer {token}"))


def checked_timeout(seconds: float | None) -> float | None:
    """Return it. Raises ValueError unless it is above 0 and at most a year."""
    if seconds is not None and not 0 < seconds <= _LONGEST_TIMEOUT_SECONDS:
        raise ValueError(f"a timeout of {seconds} seconds: above 0, and at most a year")
    return seconds


def pause_of_overload(error: PulsaError, *, attempt: int, end: float) -> float | None:
    """Seconds before a call that the server had no room for is repeated; None for another error, or no time left.

    The channel itself repeats calls that end UNAVAILABLE or CANCELLED.
    """
    has_no_room = error.reason == "OVERLOADED" or _REFUSED_STREAM in error.message
    if not has_no_room or attempt == _ATTEMPTS:
        return None
    # Calls that are refused together do not come back together.
    pause_seconds = (error.retry_after_seconds or 0.1) * random.uniform(1, 1.5)  # noqa: S311 - not secret
    return pause_seconds if time.monotonic() + pause_seconds < end else None


def reopens(error: PulsaError, *, received: bool) -> bool:
    """Whether a stream that ended so, after a message or before, is opened again."""
    if error.code is grpc.StatusCode.UNAUTHENTICATED:
        return received  # the token expired under it
    return error.reason == "OVERLOADED" or (error.code in _REOPENED and error.reason != "INTERNAL")


class Batch:
    """Any number of sends: which call is next, and what its answer means."""

    def __init__(
        self,
        organization_id: str,
        requests: Iterable[SendOtpRequest],
        *,
        compact: bool,
        largest: int,
        patience_seconds: float,
    ) -> None:
        self.pause_seconds = 0.0
        """The time to wait before the next call."""
        self._organization_id = organization_id
        self._requests = list(requests)
        self.results = [BatchSendOtpsResult()] * len(self._requests)
        self._compact = compact
        self._largest = largest
        self._patience_seconds = patience_seconds
        self._waiting = list(range(len(self._requests)))
        self._chunk: list[int] = []
        self._pause = Pause()
        self._end = time.monotonic() + patience_seconds

    @property
    def decided(self) -> int:
        """The number of results so far."""
        return len(self._requests) - len(self._waiting)

    def next(self) -> BatchSendOtpsRequest | None:
        """The next call, of as many requests as fit; None at the end."""
        self._chunk = []
        size = 0
        for number in self._waiting[: self._largest]:
            size += self._requests[number].ByteSize() + 8
            if self._chunk and size > _LARGEST_BATCH_BYTES:
                break
            self._chunk.append(number)
        if not self._chunk:
            return None
        return BatchSendOtpsRequest(
            organization_id=self._organization_id,
            requests=[self._requests[number] for number in self._chunk],
            compact=self._compact,
        )

    def answered(self, results: Iterable[BatchSendOtpsResult]) -> None:
        """Keep the results of the call."""
        undecided = []
        for number, result in zip(self._chunk, results, strict=True):
            self.results[number] = result
            if result.error.reason in _UNDECIDED:
                undecided.append(number)
        if len(undecided) < len(self._chunk):
            self._end, self._pause = time.monotonic() + self._patience_seconds, Pause()
        elif time.monotonic() >= self._end:
            undecided = []  # their errors are their results
        self._waiting = undecided + self._waiting[len(self._chunk) :]
        self.pause_seconds = self._pause.take() if undecided else 0.0

    def failed(self, error: PulsaError) -> None:
        """Prepare a repeat of the call; raises the error if it is final."""
        repeated = error.reason in _REPEATED if error.reason else error.code in _UNANSWERED
        if not repeated or time.monotonic() >= self._end:
            raise error
        self.pause_seconds = self._pause.take()
