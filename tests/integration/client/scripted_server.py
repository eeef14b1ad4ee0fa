"""A gRPC server that answers as a test scripts it."""

import socket
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import grpc
from pulsa.credit.v1.credit_service_pb2 import (
    GetBalanceRequest,
    GetBalanceResponse,
    WatchBalanceRequest,
    WatchBalanceResponse,
)
from pulsa.event.v1.event_service_pb2 import WatchEventsRequest, WatchEventsResponse
from pulsa.otp.v1.otp_service_pb2 import VerifyOtpRequest, VerifyOtpResponse

from server.api.status import ErrorStatus, error_status
from server.errors import DomainError
from tests.waiting import SECONDS

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS, _ACK = 1, 3, 4, 1
_REFUSED_STREAM = (7).to_bytes(4)

ScriptedError = DomainError | ErrorStatus | grpc.StatusCode


class ScriptedServer:
    """Records each call, and answers it with the next error of `errors`, or with OK if there is none."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.tokens: list[object] = []
        self.seconds_left: list[float | None] = []
        self.errors: deque[ScriptedError] = deque()
        self.answers = Event()
        """GetBalance answers only while it is set."""
        self.answers.set()
        self.messages = 1
        """Of a stream, before it ends."""
        self.ends = Event()
        """A stream ends only while it is set."""
        self.ends.set()

    def start(self) -> tuple[grpc.Server, str]:
        """Start it. Returns the gRPC server and its address."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetBalance": grpc.unary_unary_rpc_method_handler(
                self._get_balance, GetBalanceRequest.FromString, GetBalanceResponse.SerializeToString
            ),
            "WatchBalance": grpc.unary_stream_rpc_method_handler(
                self._watch_balance, WatchBalanceRequest.FromString, WatchBalanceResponse.SerializeToString
            ),
        }
        verify: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._verify_otp, VerifyOtpRequest.FromString, VerifyOtpResponse.SerializeToString
        )
        events: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(
            self._watch_events, WatchEventsRequest.FromString, WatchEventsResponse.SerializeToString
        )
        server = grpc.server(ThreadPoolExecutor(2))
        handler: Callable[..., Any] = grpc.method_handlers_generic_handler
        server.add_generic_rpc_handlers([handler("pulsa.credit.v1.CreditService", methods)])
        server.add_generic_rpc_handlers([handler("pulsa.otp.v1.OtpService", {"VerifyOtp": verify})])
        server.add_generic_rpc_handlers([handler("pulsa.event.v1.EventService", {"WatchEvents": events})])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return server, f"127.0.0.1:{port}"

    def _get_balance(self, request: GetBalanceRequest, context: grpc.ServicerContext) -> GetBalanceResponse:
        self._record(request, context)
        self.answers.wait(SECONDS)
        self._raise_next_error(context)
        return GetBalanceResponse()

    def _verify_otp(self, request: VerifyOtpRequest, context: grpc.ServicerContext) -> VerifyOtpResponse:
        self._record(request, context)
        self._raise_next_error(context)
        return VerifyOtpResponse()

    def _watch_balance(
        self, request: WatchBalanceRequest, context: grpc.ServicerContext
    ) -> Iterator[WatchBalanceResponse]:
        self._record(request, context)
        yield from [WatchBalanceResponse()] * self.messages
        self.ends.wait(SECONDS)
        self._raise_next_error(context)

    def _watch_events(
        self, request: WatchEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[WatchEventsResponse]:
        self._record(request, context)
        yield WatchEventsResponse(cursor=f"{request.cursor}+")
        self._raise_next_error(context)

    def _record(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.tokens.append(dict(context.invocation_metadata())["authorization"])
        self.seconds_left.append(context.time_remaining())

    def _raise_next_error(self, context: grpc.ServicerContext) -> None:
        error = self.errors.popleft() if self.errors else None
        match error_status(error) if isinstance(error, DomainError) else error:
            case ErrorStatus() as status:
                context.set_trailing_metadata(status.trailing_metadata)
                context.abort(status.code, status.message)
            case grpc.StatusCode() as code:
                context.abort(code, "a message of the server")


@contextmanager
def refusing_server(refused: list[int]) -> Iterator[str]:
    """Look at no call (HTTP/2's REFUSED_STREAM) while the block runs; yields the address, and lists the streams."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as received:
            connection.sendall(_frame(_SETTINGS))
            received.read(len(_PREFACE))
            while head := received.read(9):
                received.read(int.from_bytes(head[:3]))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
                if kind == _SETTINGS and not flags & _ACK:
                    connection.sendall(_frame(_SETTINGS, flags=_ACK))
                elif kind == _HEADERS:
                    refused.append(stream)
                    connection.sendall(_frame(_RST_STREAM, stream=stream, payload=_REFUSED_STREAM))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def _frame(kind: int, *, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload
