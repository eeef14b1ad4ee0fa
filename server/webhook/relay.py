"""Relays a webhook to the server over gRPC, through the public API."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import grpc
import structlog
from grpc import StatusCode
from pulsa.credit.v1.credit_service_pb2 import RecordStripeEventRequest
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay, wait_random_exponential

_log = structlog.get_logger(__name__)

_TRANSIENT: Final = frozenset({StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED})
_CHANNEL_OPTIONS: Final = (
    # Reconnects to a restarted server within a second; gRPC's default backoff grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Despite its name how long a connection may take to open, TLS included: 20 s by default.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # Notices a silent server in half of the time for which Stripe waits.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


class Relay:
    """Calls CreditService.RecordStripeEvent; retries while the server is unavailable, for at most timeout_seconds.

    Stripe must get its answer before it stops waiting, so timeout_seconds must be shorter than Stripe's timeout.
    """

    def __init__(
        self,
        server: str,
        *,
        token: Callable[[], str],
        credentials: grpc.ChannelCredentials | None,
        timeout_seconds: float,
    ) -> None:
        """`token` is called for each attempt, as the token may change. Without credentials nothing is encrypted."""
        self._channel = (
            grpc.aio.secure_channel(server, credentials, options=_CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(server, options=_CHANNEL_OPTIONS)
        )
        self._stub = CreditServiceStub(self._channel)
        self._token = token
        self._timeout_seconds = timeout_seconds

    async def record(self, payload: bytes, signature: str) -> HTTPStatus:
        """Relay a webhook; returns the status of its answer.

        OK: the event is stored. BAD_REQUEST: Stripe did not sign it. SERVICE_UNAVAILABLE: Stripe should send it again.
        """
        request = RecordStripeEventRequest(payload=payload, signature=signature)
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(_is_transient),
                wait=wait_random_exponential(multiplier=0.1, max=1.0),
                stop=stop_before_delay(self._timeout_seconds),
                reraise=True,
            ):
                with attempt:
                    await self._record_once(request, deadline - asyncio.get_running_loop().time())
        except grpc.aio.AioRpcError as error:
            if error.code() is StatusCode.INVALID_ARGUMENT:
                return HTTPStatus.BAD_REQUEST
            _log.error("a webhook was not relayed", grpc_code=error.code().name)
            return HTTPStatus.SERVICE_UNAVAILABLE
        return HTTPStatus.OK

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _record_once(self, request: RecordStripeEventRequest, timeout_seconds: float) -> None:
        metadata = (("authorization", f"Bearer {self._token()}"),)
        await self._stub.RecordStripeEvent(request, timeout=timeout_seconds, metadata=metadata)


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in _TRANSIENT
