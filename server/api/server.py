"""The gRPC server: listening, serving, draining, and pinning its polling thread to a processor."""

import asyncio
import ctypes
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # type: ignore[import-untyped] # has no types
from tenacity import retry, retry_if_exception_type, wait_fixed

from server.api.interceptor import Interceptor
from server.api.tls import Certificates, TlsFiles
from server.background import until_done

_log = structlog.get_logger(__name__)

# grpcio would log non-text metadata verbatim, tokens included. The interceptor logs errors of this code.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL + 1)

_CHECK_SECONDS: Final = 0.05
_REBIND_SECONDS: Final = 0.005
"""Between two tries to listen again: the first comes before the stopped server has closed its socket."""
_POLLING_THREAD: Final = "_poll_wrapper"
"""grpcio's name of the thread; all asyncio servers and channels of a process share one."""
_ENDING_SECONDS: Final = 0.5
"""For answering calls whose grace is over, before gRPC cancels them."""
_STOPPING_SECONDS: Final = 20.0
"""For the calls of a server that gRPC stopped."""
# The largest request is RecordStripeEvent's 256 KiB.
_LARGEST_MESSAGE_BYTES: Final = 1024 * 1024
# A token may have 8 KiB, which is also gRPC's default limit for all metadata.
_LARGEST_METADATA_BYTES: Final = 16 * 1024
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),
    ("grpc.max_metadata_size", _LARGEST_METADATA_BYTES),
    # A dead connection is detected within this time after a ping, so that streams do not outlive their callers.
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # a minute by default, whatever the time-out of keepalive is
    ("grpc.http2.max_pings_without_data", 0),
    # Clients may ping an idle connection this often; more frequent pings are answered with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


LIVENESS: Final = "liveness"
"""The health service that is SERVING as long as the process answers."""
READINESS: Final = "readiness"
"""The health service that is NOT_SERVING during the drain only: without a database, callers still hear the reason."""
DATABASE: Final = "database"
"""The health service that is SERVING while the database can be reached."""
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """Address and options of a gRPC server."""

    address: str
    """`host:port`; port 0 is any free port."""
    tls: TlsFiles | None = None
    """None: plaintext."""
    share_port: bool = False
    """Lets several processes listen on the port (SO_REUSEPORT). Otherwise a second server on it fails to start."""
    reflection: bool = False
    """Serves gRPC reflection, so that tools such as `buf curl` can list the services."""
    calls_waiting: int = 600
    """Queued calls that the event loop has not accepted yet, above which gRPC ends some as CANCELLED; at 125 % it ends
    all. A larger value makes served calls wait longer: one second at 2,000. With a smaller one, callers of a burst get
    CANCELLED instead of the interceptor's RESOURCE_EXHAUSTED with RetryInfo."""

    calls_per_connection: int = 480
    """Calls and streams open on one connection, also those whose token or body is still to come; the caller's gRPC
    library keeps further ones. Below calls_waiting: otherwise one connection could have the calls of others ended."""

    keepalive_seconds: float = 30.0
    """Between two pings of a silent connection: below the 60 s after which nginx cuts a stream."""

    @property
    def options(self) -> list[tuple[str, int]]:
        """The channel arguments for gRPC."""
        return [
            *_OPTIONS,
            ("grpc.keepalive_time_ms", round(1000 * self.keepalive_seconds)),
            ("grpc.so_reuseport", int(self.share_port)),
            ("grpc.max_concurrent_streams", self.calls_per_connection),
            ("grpc.server.max_pending_requests", self.calls_waiting),
            ("grpc.server.max_pending_requests_hard_limit", self.calls_waiting * 5 // 4),
        ]


class GrpcServer:
    """A listening server, replaced by a new one if gRPC stops it."""

    def __init__(
        self,
        build: Callable[[str], tuple[grpc.aio.Server, int]],
        address: str,
        *,
        interceptor: Interceptor,
        health_servicer: health.aio.HealthServicer,
        ready_names: Iterable[str],
    ) -> None:
        """`build` takes an address and returns a server and its port; `ready_names` stop to be SERVING in the drain."""
        self._build = build
        self._server, self.port = build(address)
        """The port it listens on."""
        self._address = f"{address.rpartition(':')[0]}:{self.port}"
        self._interceptor = interceptor
        self._health = health_servicer
        self._ready_names = tuple(ready_names)
        self._stopping: set[asyncio.Task[None]] = set()
        self._health_changes: set[asyncio.Task[None]] = set()

    def set_database_health(self, available: bool) -> None:  # noqa: FBT001 - a callback
        """Report the service `database` as SERVING or NOT_SERVING."""
        change = asyncio.create_task(self._health.set(DATABASE, _SERVING if available else _NOT_SERVING))
        self._health_changes.add(change)
        change.add_done_callback(self._health_changes.discard)

    async def start(self) -> None:
        """Start to accept calls."""
        await self._server.start()
        self._monitor = asyncio.create_task(until_done("grpc server", self._replace_when_stopped))

    async def drain(self, *, lame_duck_seconds: float, grace_seconds: float) -> None:
        """Report NOT_SERVING, serve for `lame_duck_seconds` more, then accept no calls and let those in flight finish.

        Calls that take longer than `grace_seconds`, and those that wait inside gRPC, end with SERVER_DRAINING. Streams
        end at once, with OK.
        """
        for name in self._ready_names:
            await self._health.set(name, _NOT_SERVING)
        await asyncio.sleep(lame_duck_seconds)
        self._monitor.cancel()
        self._interceptor.end_streams()
        await self._interceptor.refuse_calls()
        stopped = asyncio.gather(self._server.stop(grace_seconds + _ENDING_SECONDS), *self._stopping)
        await asyncio.wait([stopped], timeout=grace_seconds)
        self._interceptor.end_calls()
        await stopped

    async def _replace_when_stopped(self) -> None:
        """Replace the server when gRPC's accept loop has ended: in grpcio 1.85 a malformed request can end it.

        The calls in flight finish meanwhile.
        """
        while True:
            try:
                await self._server.wait_for_termination(_CHECK_SECONDS)
            except Exception as error:  # noqa: BLE001 - whichever error ended it, callers need a server
                _log.error("grpc_stopped", alert=True, why=type(error).__name__)
                stopping = asyncio.create_task(self._server.stop(_STOPPING_SECONDS))
                self._stopping.add(stopping)
                stopping.add_done_callback(self._stopping.discard)
                await self._listen_again()

    @retry(retry=retry_if_exception_type(RuntimeError), wait=wait_fixed(_REBIND_SECONDS))  # until the port is free
    async def _listen_again(self) -> None:
        self._server, _ = self._build(self._address)
        await self._server.start()


class _Handlers(list[grpc.GenericRpcHandler]):
    """Collects the services of generated code as generic handlers only.

    With methods registered by name the process may die when the accept loop of grpcio 1.85 has ended with an error: it
    frees the memory reserved for the next call of each method, and gRPC writes to it at shutdown.
    """

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Do nothing: the generic handlers serve these methods."""


async def start_server(
    services: Mapping[ServiceDescriptor, object], *, interceptor: Interceptor, listening: ListenOptions
) -> GrpcServer:
    """Start a server with each servicer behind the interceptor, and with health checks, which bypass it.

    Raises RuntimeError when it cannot listen on the address, LookupError as Interceptor.handler does, and TlsFileError.
    """
    handlers = _Handlers(interceptor.handler(service, servicer) for service, servicer in services.items())
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, handlers)
    names = [service.full_name for service in services]
    if listening.reflection:
        reflected = reflection.aio.ReflectionServicer([*names, health.SERVICE_NAME, reflection.SERVICE_NAME])
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, handlers)
    ready_names = (health.OVERALL_HEALTH, READINESS, *names)
    for name in (*ready_names, LIVENESS, DATABASE):
        await health_servicer.set(name, _SERVING)
    certificates = Certificates(listening.tls) if listening.tls else None

    def build(address: str) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=listening.options)
        server.add_generic_rpc_handlers(handlers)
        if certificates is None:
            return server, server.add_insecure_port(address)
        # Credentials work for one server only.
        return server, server.add_secure_port(address, certificates.server_credentials())

    server = GrpcServer(
        build, listening.address, interceptor=interceptor, health_servicer=health_servicer, ready_names=ready_names
    )
    await server.start()
    return server


@asynccontextmanager
async def pinned_polling_thread() -> AsyncIterator[None]:
    """Pin gRPC's polling thread to the event loop's processor while the block runs.

    A thread of grpcio waits for each of the about four events of a call and wakes the loop. By default the scheduler
    runs it on another processor, and waking a processor takes longer than the thread's own work: on a virtual machine
    29 µs of the loop's time per send. On the loop's processor, as a batch thread (SCHED_BATCH), it does not interrupt
    the loop, and delivers all events that have arrived when the loop waits.

    Linux only. On other systems, or with a single processor, it does nothing.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(processors) <= 1:
        yield
        return
    current_processor = ctypes.CDLL(None).sched_getcpu
    repinning = asyncio.create_task(until_done("polling thread", lambda: _follow_event_loop(current_processor)))
    try:
        yield
    finally:
        repinning.cancel()
        with suppress(OSError):  # the thread ends with the last server
            _pin(polling_threads(), processors, os.SCHED_OTHER)


def polling_threads() -> list[int]:
    """Return the kernel's ids of gRPC's polling threads."""
    return [thread.native_id for thread in threading.enumerate() if _POLLING_THREAD in thread.name and thread.native_id]


async def _follow_event_loop(current_processor: Callable[[], int]) -> None:
    pinned = None
    while True:
        wanted = polling_threads(), current_processor()
        try:
            if wanted != pinned:
                threads, processor = pinned = wanted
                _pin(threads, {processor}, os.SCHED_BATCH)
        except ProcessLookupError:  # the thread has just ended; the next server has a new one
            pinned = None
        except OSError as error:  # a container runtime may forbid it
            _log.info("the polling thread is not pinned", why=error.strerror)
            return
        await asyncio.sleep(_CHECK_SECONDS)


def _pin(threads: Iterable[int], processors: Iterable[int], policy: int) -> None:
    for thread in threads:
        os.sched_setaffinity(thread, processors)
        os.sched_setscheduler(thread, policy, os.sched_param(0))
