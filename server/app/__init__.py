"""The hallway: builds everything once and takes it down in order. The only place that knows everyone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from prometheus_client import REGISTRY, CollectorRegistry
from pulsa.credit.v1 import credit_service_pb2
from pulsa.otp.v1 import otp_service_pb2

from server.app.credit_room import open_credit_room
from server.app.foundations import lay_foundations, needed, read_from
from server.app.otp_room import open_otp_room
from server.channels.console import Console
from server.environment import SettingsError
from server.rpc.certificates import TlsFiles
from server.rpc.credit_service import CreditService
from server.rpc.door import Door
from server.rpc.otp_service import OtpService
from server.rpc.serving import GrpcServer, Listening, start_server
from server.rpc.tokens import TokenVerifier
from server.settings import Settings
from server.stops import Reached, go_on
from server.watch.night_watch import NightWatch

CREDIT_SERVICE = credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"]
OTP_SERVICE = otp_service_pb2.DESCRIPTOR.services_by_name["OtpService"]


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    database_url: str,
    console: Console | None = None,
    reached: Reached = go_on,
    registry: CollectorRegistry = REGISTRY,
) -> AsyncIterator[GrpcServer]:
    """The whole server, listening; drained when the block ends. The schema must be up to date.

    Raises SettingsError for what only shows when it is used: a file that is not there, a key that is none.
    """
    async with AsyncExitStack() as stack:
        try:
            foundations = await lay_foundations(stack, settings, database_url, console)
            credit_room, credit_rounds = open_credit_room(stack, foundations, reached=reached)
            otp_room, otp_rounds = await open_otp_room(stack, foundations)
        except (OSError, ValueError) as error:
            raise SettingsError(str(error)) from error
        with read_from("PULSA_TOKEN_KEYS"):
            verifier = TokenVerifier(
                needed(settings.token.keys, "PULSA_TOKEN_KEYS"),
                audience=settings.token.audience,
                leeway_seconds=settings.token.leeway_seconds,
            )
        stack.push_async_callback(NightWatch([*credit_rounds, *otp_rounds]).stop)
        keys = asyncio.create_task(verifier.keep_current())
        stack.callback(keys.cancel)
        door = Door(
            verifier,
            registry=registry,
            calls_at_once=settings.limit.calls_at_once,
            streams_at_once=settings.limit.streams_at_once,
        )
        counts = asyncio.create_task(door.metrics.keep_shared())
        stack.callback(counts.cancel)
        services = {CREDIT_SERVICE: CreditService(credit_room), OTP_SERVICE: OtpService(otp_room)}
        try:
            with read_from("PULSA_TLS_CERTIFICATE"):
                server = await start_server(services, door=door, listening=_listening(settings))
        except RuntimeError as error:
            raise SettingsError(f"PULSA_LISTEN: {settings.listen} cannot be listened on") from error
        try:
            yield server
        finally:
            await server.drain(lame_duck_seconds=settings.lame_duck_seconds, grace_seconds=settings.drain_seconds)


def _tls_files(settings: Settings) -> TlsFiles:
    return TlsFiles(
        certificate_chain=needed(settings.tls.certificate, "PULSA_TLS_CERTIFICATE"),
        private_key=needed(settings.tls.key, "PULSA_TLS_KEY"),
        client_authorities=settings.tls.client_ca,
    )


def _listening(settings: Settings) -> Listening:
    return Listening(
        address=settings.listen,
        tls=_tls_files(settings) if settings.tls.certificate else None,
        share_port=settings.workers > 1,
        reflection=settings.reflection,
        calls_waiting=settings.limit.calls_waiting,
    )
