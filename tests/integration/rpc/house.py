"""A real server with tiny servicers behind a real door, and callers with real tokens."""

import asyncio
import ssl
import time
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

from server.rpc.development_key import DevelopmentKey, development_key
from server.rpc.door import Call, Door
from server.rpc.serving import GrpcServer, Listening, start_server
from server.rpc.tokens import TokenVerifier, mint
from tests.fuzz.frames import Frames
from tests.fuzz.scale import chance

SERVICES: list[ServiceDescriptor] = [
    credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"],
    otp_service_pb2.DESCRIPTOR.services_by_name["OtpService"],
]


@dataclass
class Room:
    """What the tiny servicers do: count, and wait or fail when a test says so."""

    calls: list[Call] = field(default_factory=list)
    error: Exception | None = None
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(self, call: Call) -> None:
        self.calls.append(call)
        if self.error:
            raise self.error
        await self.open.wait()


def tiny_servicer(service: ServiceDescriptor, room: Room) -> object:
    """A servicer whose every rpc answers with an empty response once the room lets it; a stream sends two."""

    def method_of(method: MethodDescriptor) -> Any:
        response = GetMessageClass(method.output_type)

        async def answer(_self: object, _request: Any, call: Call) -> Any:
            await room.enter(call)
            return response()

        async def stream(_self: object, _request: Any, call: Call) -> AsyncIterator[Any]:
            yield response()
            await room.enter(call)
            yield response()

        return stream if method.server_streaming else answer

    return type("Tiny", (), {method.name: method_of(method) for method in service.methods})()


@dataclass
class House:
    """A running server and what a test needs to reach and watch it."""

    server: GrpcServer
    room: Room
    registry: CollectorRegistry
    key: DevelopmentKey

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def token(self, *permissions: str, organization_id: str = "acme") -> str:
        return mint(
            self.key.private_key(),
            subject="tester",
            organization_id=organization_id,
            permissions=permissions,
            lifetime_seconds=60,
        )

    def metadata(self, *permissions: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token(*permissions)}"),)

    def count(self, rpc: str, code: str) -> float:
        return self.registry.get_sample_value("pulsa_rpc_requests_total", {"rpc": rpc, "code": code}) or 0.0


@asynccontextmanager
async def open_house(folder: Path, *, listening: Listening | None = None, **limits: Any) -> AsyncIterator[House]:
    """A server with both services; limits are the door's."""
    key, room, registry = development_key(folder), Room(), CollectorRegistry()
    room.open.set()
    door = Door(TokenVerifier(key.public_key_file), registry=registry, **limits)
    servicers = {service: tiny_servicer(service, room) for service in SERVICES}
    server = await start_server(servicers, door=door, listening=listening or Listening(address="127.0.0.1:0"))
    yield House(server, room, registry, key)
    room.open.set()
    await server.drain(lame_duck_seconds=0, grace_seconds=5)


async def stop_grpc(house: House, *, tls: ssl.SSLContext | None = None) -> None:
    """Make a call whose path is no text, and return once gRPC has stopped at it."""
    *_, no_text = Frames(chance(), path="/", token="", request=b"").known()
    with capture_logs() as lines:
        _, writer = await asyncio.open_connection("127.0.0.1", house.server.port, ssl=tls)
        writer.write(no_text)
        await until(lambda: [line["event"] for line in lines] == ["grpc_stopped"])
    writer.transport.abort()


async def until(holds: Any, seconds: float = 10.0) -> None:
    """Return once holds() is true; fail when it is not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)
