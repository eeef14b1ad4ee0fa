"""A gRPC server in place of the credit service, for the sidecar."""

import asyncio
from collections import deque
from typing import Any

import grpc
from pulsa.credit.v1.credit_service_pb2 import RecordStripeEventRequest, RecordStripeEventResponse


class FakeCreditService:
    """Records each event that the sidecar relays, and answers with the next error of `errors`, or with OK."""

    def __init__(self) -> None:
        self.events: list[RecordStripeEventRequest] = []
        self.tokens: list[str] = []
        self.errors: deque[grpc.StatusCode] = deque()
        self.arrived = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def start(self) -> tuple[grpc.aio.Server, str]:
        """Start it. Returns the gRPC server and its address."""
        server = grpc.aio.server()
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "RecordStripeEvent": grpc.unary_unary_rpc_method_handler(
                self._record_stripe_event,
                request_deserializer=RecordStripeEventRequest.FromString,
                response_serializer=RecordStripeEventResponse.SerializeToString,
            )
        }
        handler = grpc.method_handlers_generic_handler("pulsa.credit.v1.CreditService", methods)
        server.add_generic_rpc_handlers([handler])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"

    async def _record_stripe_event(
        self, request: RecordStripeEventRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RecordStripeEventResponse:
        self.events.append(request)
        self.tokens.append(str(dict(context.invocation_metadata() or ())["authorization"]))
        self.arrived.set()
        await self.may_answer.wait()
        if self.errors:
            await context.abort(self.errors.popleft(), "a message of the server")
        return RecordStripeEventResponse(event_id="evt_1")
