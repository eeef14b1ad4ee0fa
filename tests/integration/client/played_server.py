"""A gRPC server that says what a test wants it to."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from pulsa.credit.v1.credit_service_pb2 import (
    GetBalanceRequest,
    GetBalanceResponse,
    WatchBalanceRequest,
    WatchBalanceResponse,
)

from server.errors import DomainError
from server.rpc.status import failure_of

Ending = DomainError | grpc.StatusCode


class PlayedServer:
    """Answers each call with the next scripted ending, and with OK when there is none; remembers what came."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.tokens: list[object] = []
        self.seconds_left: list[float | None] = []
        self.endings: deque[Ending] = deque()

    def start(self) -> tuple[grpc.Server, str]:
        """The server and its address."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetBalance": grpc.unary_unary_rpc_method_handler(
                self._get_balance, GetBalanceRequest.FromString, GetBalanceResponse.SerializeToString
            ),
            "WatchBalance": grpc.unary_stream_rpc_method_handler(
                self._watch_balance, WatchBalanceRequest.FromString, WatchBalanceResponse.SerializeToString
            ),
        }
        server = grpc.server(ThreadPoolExecutor(2))
        handler: Callable[..., Any] = grpc.method_handlers_generic_handler
        server.add_generic_rpc_handlers([handler("pulsa.credit.v1.CreditService", methods)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return server, f"127.0.0.1:{port}"

    def _get_balance(self, request: GetBalanceRequest, context: grpc.ServicerContext) -> GetBalanceResponse:
        self._enter(request, context)
        self._end(context)
        return GetBalanceResponse()

    def _watch_balance(
        self, request: WatchBalanceRequest, context: grpc.ServicerContext
    ) -> Iterator[WatchBalanceResponse]:
        self._enter(request, context)
        yield WatchBalanceResponse()
        self._end(context)

    def _enter(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.tokens.append(dict(context.invocation_metadata())["authorization"])
        self.seconds_left.append(context.time_remaining())

    def _end(self, context: grpc.ServicerContext) -> None:
        match self.endings.popleft() if self.endings else None:
            case DomainError() as error:
                failure = failure_of(error)
                context.set_trailing_metadata(failure.trailing_metadata)
                context.abort(failure.code, failure.message)
            case grpc.StatusCode() as code:
                context.abort(code, "in the server's words")
