"""A real gRPC server: stub servicers behind the real interceptor, and tokens that it accepts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from prometheus_client import CollectorRegistry
from pulsa.credit.v1 import credit_service_pb2
from pulsa.otp.v1 import otp_service_pb2
from structlog.testing import capture_logs

from server.api.auth import TokenVerifier, mint
from server.api.interceptor import Call, Interceptor
from server.api.server import GrpcServer, ListenOptions, start_server
from server.cli.token import DevelopmentKey, development_key
from tests.waiting import until

SERVICES: list[ServiceDescriptor] = [
    credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"],
    otp_service_pb2.DESCRIPTOR.services_by_name["OtpService"],
]


@dataclass
class StubBehavior:
    """What every stub rpc does: record the call, raise `error` if there is one, and wait until it may answer."""

    calls: list[Call] = field(default_factory=list)
    error: Exception | None = None
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, call: Call) -> None:
        self.calls.append(call)
        if self.error:
            raise self.error
        await self.may_answer.wait()


def stub_servicer(service: ServiceDescriptor, behavior: StubBehavior) -> object:
    """A servicer whose every rpc answers with an empty response; a stream sends one before and one after it waits."""

    def method_of(method: MethodDescriptor) -> Any:
        response = GetMessageClass(method.output_type)

        async def answer(_self: object, _request: Any, call: Call) -> Any:
            await behavior.handle(call)
            return response()

        async def stream(_self: object, _request: Any, call: Call) -> AsyncIterator[Any]:
            yield response()
            await behavior.handle(call)
            yield response()

        return stream if method.server_streaming else answer

    return type("StubServicer", (), {method.name: method_of(method) for method in service.methods})()


@dataclass
class StubServer:
    """A running server, the behavior of its rpcs, its metrics, and the key of its tokens."""

    grpc_server: GrpcServer
    behavior: StubBehavior
    registry: CollectorRegistry
    key: DevelopmentKey

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc_server.port}"

    def token(self, *permissions: str, organization_id: str = "acme") -> str:
        return mint(
            self.key.private_key(),
            subject="tester",
            organization_id=organization_id,
            permissions=permissions,
            lifetime_seconds=60,
        )

    def metadata(self, *permissions: str, organization_id: str = "acme") -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token(*permissions, organization_id=organization_id)}"),)

    def count(self, rpc: str, code: str) -> float:
        """How many calls of the rpc ended with this code."""
        return self.registry.get_sample_value("pulsa_rpc_requests_total", {"rpc": rpc, "code": code}) or 0.0


@asynccontextmanager
async def run_stub_server(
    folder: Path, *, listening: ListenOptions | None = None, **limits: Any
) -> AsyncIterator[StubServer]:
    """A server with both services, drained at the end; `limits` are the interceptor's."""
    key, behavior, registry = development_key(folder), StubBehavior(), CollectorRegistry()
    behavior.may_answer.set()
    interceptor = Interceptor(TokenVerifier(key.public_key_file), registry=registry, **limits)
    servicers = {service: stub_servicer(service, behavior) for service in SERVICES}
    grpc_server = await start_server(
        servicers, interceptor=interceptor, listening=listening or ListenOptions(address="127.0.0.1:0")
    )
    yield StubServer(grpc_server, behavior, registry, key)
    behavior.may_answer.set()
    await grpc_server.drain(lame_duck_seconds=0, grace_seconds=5)


async def end_accept_loop(stub_server: StubServer) -> None:
    """Let gRPC's accept loop seem to end with an error, and return once another server has taken its place."""
    ended_server = stub_server.grpc_server._server

    async def ended(timeout: float | None = None) -> bool:  # noqa: ARG001, ASYNC109 - as grpc.aio's
        raise RuntimeError("the accept loop ended")

    with capture_logs() as lines:
        ended_server.wait_for_termination = ended  # type: ignore[method-assign]
        await until(lambda: stub_server.grpc_server._server is not ended_server)
    assert [line["event"] for line in lines if line["event"] != "call"] == ["grpc_stopped"]
