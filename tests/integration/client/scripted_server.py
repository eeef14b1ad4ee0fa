"""A gRPC server that answers as a test scripts it."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import grpc
from pulsa.credit.v1.credit_service_pb2 import (
    GetBalanceRequest,
    GetBalanceResponse,
    WatchBalanceRequest,
    WatchBalanceResponse,
)
from pulsa.otp.v1.otp_service_pb2 import VerifyOtpRequest, VerifyOtpResponse

from server.api.status import error_status
from server.errors import DomainError
from tests.waiting import SECONDS

ScriptedError = DomainError | grpc.StatusCode


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
        server = grpc.server(ThreadPoolExecutor(2))
        handler: Callable[..., Any] = grpc.method_handlers_generic_handler
        server.add_generic_rpc_handlers([handler("pulsa.credit.v1.CreditService", methods)])
        server.add_generic_rpc_handlers([handler("pulsa.otp.v1.OtpService", {"VerifyOtp": verify})])
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
        yield WatchBalanceResponse()
        self._raise_next_error(context)

    def _record(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.tokens.append(dict(context.invocation_metadata())["authorization"])
        self.seconds_left.append(context.time_remaining())

    def _raise_next_error(self, context: grpc.ServicerContext) -> None:
        match self.errors.popleft() if self.errors else None:
            case DomainError() as error:
                status = error_status(error)
                context.set_trailing_metadata(status.trailing_metadata)
                context.abort(status.code, status.message)
            case grpc.StatusCode() as code:
                context.abort(code, "a message of the server")
