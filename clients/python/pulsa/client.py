"""A thin client: the generated stubs with a token, a deadline, safe repeats and errors that a program can decide on.

    with connect("pulsa.internal:50051", token=token_from_file(Path("/run/secrets/pulsa-token"))) as pulsa:
        pulsa.otps.SendOtp(SendOtpRequest(...))

A call that cannot reach the server (UNAVAILABLE) is repeated until its deadline, at most 4 times in all. That is safe:
every call that spends carries the caller's request_id, and the repeat has the same one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

import grpc

from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.errors import explain
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub

Token = str | Callable[[], str]
"""A token, or what gives one for each call; see pulsa.tokens."""

_RETRY_POLICY: Final = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_OPTIONS: Final = [
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRY_POLICY}]})),
    # A server that restarts is found again at once: gRPC by itself would wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class PulsaClient:
    """Pulsa's services. Safe to use from many threads; close it, or use it in a `with`.

    A unary call raises PulsaError. A stream raises grpc.RpcError while it is read: pass it to pulsa.errors.explain.
    """

    def __init__(self, channel: grpc.Channel, *, token: Token, timeout_seconds: float = 10.0) -> None:
        """timeout_seconds is the deadline of unary calls that name none."""
        self._channel = channel
        provider = (lambda: token) if isinstance(token, str) else token
        intercepted = grpc.intercept_channel(channel, _Interceptor(provider, timeout_seconds))
        self.credits = CreditServiceStub(intercepted)
        self.otps = OtpServiceStub(intercepted)

    def close(self) -> None:
        """Let go of the connection; calls that are under way are cancelled."""
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
    """A client of the server at `target`, such as `pulsa.internal:50051`.

    Credentials are those of grpc.ssl_channel_credentials; without them nothing is encrypted, for this machine only.
    """
    channel = (
        grpc.secure_channel(target, credentials, options=_OPTIONS)
        if credentials
        else grpc.insecure_channel(target, options=_OPTIONS)
    )
    return PulsaClient(channel, token=token, timeout_seconds=timeout_seconds)


@dataclass(frozen=True, slots=True)
class _Details(grpc.ClientCallDetails):
    """A call's circumstances, in a form that can be changed."""

    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Interceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, token: Callable[[], str], timeout_seconds: float) -> None:
        self._token = token
        self._timeout_seconds = timeout_seconds

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        details = self._with_token(client_call_details)
        if details.timeout is None:
            details = replace(details, timeout=self._timeout_seconds)
        call = continuation(details, request)
        error = call.exception()
        if isinstance(error, grpc.RpcError):
            raise explain(error) from error
        return call

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._with_token(client_call_details), request)

    def _with_token(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), ("authorization", f"Bearer {self._token()}")),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
