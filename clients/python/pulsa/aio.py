"""The client for asyncio: as pulsa.client, with the same rules.

async with connect("pulsa.internal:50051", token=token_from_file(Path("/run/secrets/pulsa-token"))) as pulsa:
    await pulsa.otps.SendOtp(SendOtpRequest(...))
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import count
from types import TracebackType
from typing import Any, Self, cast

import grpc

from pulsa.calls import OPTIONS, Batch, Metadata, Pause, Rules, Token, checked_timeout, pause_of_overload, reopens
from pulsa.credit.v1.credit_service_pb2 import WatchBalanceRequest, WatchBalanceResponse
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.errors import PulsaError, explain
from pulsa.event.v1.event_service_pb2 import WatchEventsRequest, WatchEventsResponse
from pulsa.event.v1.event_service_pb2_grpc import EventServiceStub
from pulsa.otp.v1.otp_service_pb2 import BatchSendOtpsResult, SendOtpRequest
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub


class PulsaClient:
    """Pulsa's services, for one event loop. Close it after use, or use it in an `async with` statement.

    A unary call is a coroutine, and raises PulsaError. Streams, wrong messages and timeouts are as in pulsa.client.
    A token that is read from a file is read in the event loop.
    """

    def __init__(self, channel: grpc.aio.Channel, *, token: Token, timeout_seconds: float = 10.0) -> None:
        """`timeout_seconds` is the deadline of unary calls without a timeout of their own, at most a year."""
        checked_timeout(timeout_seconds)
        self._channel = channel
        ours = cast("grpc.aio.Channel", _Channel(channel, token, timeout_seconds))
        self.credits = CreditServiceStub(ours)
        self.otps = OtpServiceStub(ours)
        self.events = EventServiceStub(ours)

    def watch_balance(self, organization_id: str) -> AsyncIterator[WatchBalanceResponse]:
        """Yield the balance now and on each change, for as long as it is asked for; as pulsa.client's does.

        Raises PulsaError when the server refuses, and grpc.aio.UsageError once the client is closed.
        """
        return self._reopened(lambda _: self.credits.WatchBalance(WatchBalanceRequest(organization_id=organization_id)))

    def watch_events(
        self, organization_id: str, *, cursor: str = "", from_oldest: bool = False
    ) -> AsyncIterator[WatchEventsResponse]:
        """Yield the organization's events after the cursor, for as long as they are asked for; as pulsa.client's does.

        Raises PulsaError when the server refuses, and grpc.aio.UsageError once the client is closed.
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

    async def _reopened(self, follow: Callable[[Any], Any]) -> AsyncIterator[Any]:
        """Yield the messages of a stream, and of those that are opened after it; `follow` gets the last message."""
        pause, last = Pause(), None
        while True:
            stream, received = follow(last), False
            try:
                async for response in stream:
                    pause, received, last = Pause(), True, response
                    yield response
            except grpc.RpcError as error:
                explained = explain(error)
                if not reopens(explained, received=received):
                    raise explained from error
            finally:
                stream.cancel()
            await asyncio.sleep(pause.take())

    async def send_batch(
        self,
        organization_id: str,
        requests: Iterable[SendOtpRequest],
        *,
        compact: bool = True,
        progress: Callable[[int], object] = lambda _: None,
        largest: int = 1000,
        patience_seconds: float = 60.0,
    ) -> list[BatchSendOtpsResult]:
        """Send any number of OTPs; returns a result for each, in order. As pulsa.client's does."""
        batch = Batch(organization_id, requests, compact=compact, largest=largest, patience_seconds=patience_seconds)
        while request := batch.next():
            try:
                batch.answered((await self.otps.BatchSendOtps(request)).results)
            except PulsaError as error:
                batch.failed(error)
            await asyncio.sleep(batch.pause_seconds)
            progress(batch.decided)
        return batch.results

    async def close(self) -> None:
        """Close the connection and cancel calls in progress."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def connect(
    target: str, *, token: Token, credentials: grpc.ChannelCredentials | None = None, timeout_seconds: float = 10.0
) -> PulsaClient:
    """Return a client of the server at `target`; as pulsa.client's does."""
    channel = (
        grpc.aio.secure_channel(target, credentials, options=OPTIONS)
        if credentials
        else grpc.aio.insecure_channel(target, options=OPTIONS)
    )
    return PulsaClient(channel, token=token, timeout_seconds=timeout_seconds)


class _Channel:
    """What a stub needs of a channel, with calls that follow the rules."""

    def __init__(self, channel: grpc.aio.Channel, token: Token, timeout_seconds: float) -> None:
        self._channel = channel
        self._token = token
        self._timeout_seconds = timeout_seconds

    def unary_unary(self, rpc: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        call: Any = self._channel.unary_unary(rpc, *args, **kwargs)
        rules = Rules(rpc, self._token, self._timeout_seconds)

        async def unary(
            request: Any,
            timeout: float | None = None,  # noqa: ASYNC109 - the name that gRPC's calls have
            metadata: Metadata | None = None,
            **options: Any,
        ) -> Any:
            end = time.monotonic() + (rules.check(request, timeout) or 0)
            for attempt in count(1):
                try:
                    return await call(
                        request, timeout=end - time.monotonic(), metadata=rules.metadata(metadata), **options
                    )
                except grpc.RpcError as error:
                    explained = explain(error)
                    pause_seconds = pause_of_overload(explained, attempt=attempt, end=end)
                    if pause_seconds is None:
                        raise explained from error
                await asyncio.sleep(pause_seconds)
            raise AssertionError

        return unary

    def unary_stream(self, rpc: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        call: Any = self._channel.unary_stream(rpc, *args, **kwargs)
        rules = Rules(rpc, self._token, None)

        def stream(request: Any, timeout: float | None = None, metadata: Metadata | None = None, **options: Any) -> Any:
            timeout = rules.check(request, timeout)
            return call(request, timeout=timeout, metadata=rules.metadata(metadata), **options)

        return stream
