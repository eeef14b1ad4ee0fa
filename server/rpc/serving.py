"""The gRPC server: where it listens, what it serves, and how it goes down without failing a call."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # type: ignore[import-untyped] # has no types
from tenacity import retry, retry_if_exception_type, wait_fixed

from server.rpc.certificates import Certificates, TlsFiles
from server.rpc.door import Door

# It would log metadata that is no text word for word, tokens included. What our code raises is logged at the door.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL + 1)

_log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 0.05
_ENDING_SECONDS: Final = 20.0
# The largest request is RecordStripeEvent's 256 KiB.
_LARGEST_MESSAGE_BYTES: Final = 1024 * 1024
# A token may be 8 KiB; gRPC's own bound on all metadata is 8 KiB.
_LARGEST_METADATA_BYTES: Final = 16 * 1024
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),
    ("grpc.max_metadata_size", _LARGEST_METADATA_BYTES),
    # A connection that went silent is noticed within a minute and a half, so that streams do not outlive their callers.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Callers may ping an idle connection this often; more is answered with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where and how to listen."""

    address: str
    """`host:port`; port 0 takes any free one."""
    tls: TlsFiles | None = None
    """None: plaintext."""
    share_port: bool = False
    """Several processes on one port (SO_REUSEPORT). Off, a second server on the port fails instead of sharing it."""
    reflection: bool = False
    """Lets tools such as `buf curl` ask which services there are."""
    calls_waiting: int = 600
    """Calls that have arrived and that the event loop has not looked at. From so many on gRPC ends some, and a quarter
    later all, as CANCELLED and without a word of ours. More, and those that are served wait for longer: a second with
    2,000. Fewer, and a crowd that comes at once does not hear RESOURCE_EXHAUSTED from the door."""

    @property
    def options(self) -> list[tuple[str, int]]:
        """What gRPC is told."""
        return [
            *_OPTIONS,
            ("grpc.so_reuseport", int(self.share_port)),
            ("grpc.server.max_pending_requests", self.calls_waiting),
            ("grpc.server.max_pending_requests_hard_limit", self.calls_waiting * 5 // 4),
        ]


class GrpcServer:
    """A server that listens, and does so again should gRPC have stopped of itself."""

    def __init__(
        self,
        build: Callable[[str], tuple[grpc.aio.Server, int]],
        address: str,
        *,
        door: Door,
        health_servicer: health.aio.HealthServicer,
    ) -> None:
        """`build` makes a server for an address, and says which port it took."""
        self._build = build
        self._server, self.port = build(address)
        """The port it listens on."""
        self._address = f"{address.rpartition(':')[0]}:{self.port}"
        self._door = door
        self._health = health_servicer
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()
        self._keeping = asyncio.create_task(self._keep_listening())

    async def drain(self, *, lame_duck_seconds: float, grace_seconds: float) -> None:
        """Go down: say NOT_SERVING, serve on until callers have seen it, take no more, and let what is in finish.

        Calls that take longer than grace_seconds are cancelled; streams end at once, with OK.
        """
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(lame_duck_seconds)
        self._keeping.cancel()
        self._door.end_streams()
        await asyncio.gather(self._server.stop(grace_seconds), *self._ending)

    async def _keep_listening(self) -> None:
        """Listen again when gRPC's loop has ended: a call whose path is not UTF-8 does that to grpcio 1.85.

        The calls that were in finish meanwhile.
        """
        while True:
            try:
                await self._server.wait_for_termination(_LOOK_SECONDS)
            except Exception as error:  # noqa: BLE001 - whatever ended it, callers need a server
                _log.error("grpc_stopped", alert=True, why=type(error).__name__)
                ending = asyncio.create_task(self._server.stop(_ENDING_SECONDS))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
                await self._listen_again()

    @retry(retry=retry_if_exception_type(RuntimeError), wait=wait_fixed(_LOOK_SECONDS))  # the port is let go of soon
    async def _listen_again(self) -> None:
        self._server, _ = self._build(self._address)
        await self._server.start()


class _Handlers(list[grpc.GenericRpcHandler]):
    """Takes services from generated code, each as a generic handler only.

    Methods that are registered by name as well would do harm: when grpcio 1.85's accepting loop ends with an error, it
    frees the memory that waits for a call of each, and gRPC writes there as it shuts down: the process died of it.
    """

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Leave them to the generic ones."""


async def start_server(services: Mapping[ServiceDescriptor, object], *, door: Door, listening: Listening) -> GrpcServer:
    """Serve each service's servicer behind the door, with health checks beside it, which pass no door.

    Raises RuntimeError when the address cannot be listened on, LookupError as Door.handler does, OSError or ValueError
    when TLS files cannot be used.
    """
    handlers = _Handlers(door.handler(service, servicer) for service, servicer in services.items())
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, handlers)
    names = [service.full_name for service in services]
    if listening.reflection:
        reflected = reflection.aio.ReflectionServicer([*names, health.SERVICE_NAME, reflection.SERVICE_NAME])
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, handlers)
    for name in names:
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    certificates = Certificates(listening.tls) if listening.tls else None

    def build(address: str) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=listening.options)
        server.add_generic_rpc_handlers(handlers)
        if certificates is None:
            return server, server.add_insecure_port(address)
        # Credentials are good for one server.
        return server, server.add_secure_port(address, certificates.server_credentials())

    server = GrpcServer(build, listening.address, door=door, health_servicer=health_servicer)
    await server.start()
    return server
