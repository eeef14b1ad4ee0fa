"""The outcome of every HTTP provider when the network fails before, during and after a request."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from server.clock import utc_now
from server.providers.provider import Message, OutcomeKind, Provider
from server.providers.templates import Templates
from server.providers.twilio import Twilio, TwilioSettings
from server.providers.vonage import Vonage, VonageSettings
from server.providers.whatsapp import WhatsApp, WhatsAppSettings
from server.sandbox.providers import Answer, Conduct, ProvidersSandbox, json_answer

MakeMessage = Callable[..., Message]
Build = Callable[[str, float], Provider]


@pytest.fixture(params=["twilio", "vonage", "whatsapp"])
async def build(request: pytest.FixtureRequest, templates: Templates) -> AsyncIterator[Build]:
    """Opens the provider for a base URL and a timeout in seconds. It is closed after the test."""
    built: list[Provider] = []

    def make(url: str, timeout_seconds: float) -> Provider:
        provider: Provider
        if request.param == "twilio":
            provider = Twilio(
                TwilioSettings("AC1", "t", "+1", base_url=url, timeout_seconds=timeout_seconds),
                templates,
                clock=utc_now,
            )
        elif request.param == "vonage":
            provider = Vonage(
                VonageSettings("k", "s", "x", base_url=url, timeout_seconds=timeout_seconds), templates, clock=utc_now
            )
        else:
            provider = WhatsApp(WhatsAppSettings("1", "t", "otp", base_url=url, timeout_seconds=timeout_seconds))
        built.append(provider)
        return provider

    yield make
    for provider in built:
        await provider.close()


@contextmanager
def open_port(*, backlog: int = 5) -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server, f"http://127.0.0.1:{server.getsockname()[1]}"


async def test_a_closed_port_means_not_sent(build: Build, make_message: MakeMessage) -> None:
    with open_port() as (_, url):
        pass

    outcome = await build(url, 5).deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.NOT_SENT, "unreachable")


async def test_a_tls_handshake_that_times_out_means_not_sent(build: Build, make_message: MakeMessage) -> None:
    """The socket is connected, but without TLS no request can have been sent."""
    with open_port() as (_, url):
        outcome = await build(url.replace("http:", "https:"), 0.2).deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.NOT_SENT, "unreachable")


async def test_an_answer_that_times_out_is_unknown(
    build: Build, sandbox: ProvidersSandbox, sandbox_url: str, make_message: MakeMessage
) -> None:
    provider = build(sandbox_url, 0.3)
    sandbox.play(provider.name, Answer(conduct=Conduct.HANG))

    outcome = await provider.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "timeout")
    assert len(sandbox.received) == 1


async def test_a_reset_after_the_request_was_read_is_unknown(
    build: Build, sandbox: ProvidersSandbox, sandbox_url: str, make_message: MakeMessage
) -> None:
    provider = build(sandbox_url, 5)
    sandbox.play(provider.name, Answer(conduct=Conduct.RESET))

    outcome = await provider.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "connection_lost")
    assert len(sandbox.received) == 1


async def test_a_reset_before_the_request_was_read_is_unknown(build: Build, make_message: MakeMessage) -> None:
    """The client cannot distinguish it from a reset after the request was read."""

    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outcome = await build(url, 5).deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "connection_lost")


async def test_a_call_that_a_shutdown_cancels_is_unknown_once_the_request_may_have_left(
    build: Build, make_message: MakeMessage
) -> None:
    """Otherwise another replica would send the message again."""
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()
        writer.close()
        closed.set()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        delivering = asyncio.ensure_future(build(url, 30).deliver(make_message()))
        await arrived.wait()
        delivering.cancel()
        outcome = await delivering
        await closed.wait()

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "shutdown")


async def test_a_truncated_body_is_unknown(
    build: Build, sandbox: ProvidersSandbox, sandbox_url: str, make_message: MakeMessage
) -> None:
    provider = build(sandbox_url, 5)
    body = '{"sid": "SM1", "messages": [{"id": "wamid.1", "status": "0"}]}'
    sandbox.play(provider.name, Answer(201, body, conduct=Conduct.TRUNCATE))

    outcome = await provider.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "connection_lost")


async def test_a_body_that_is_too_long_is_unknown(
    build: Build, sandbox: ProvidersSandbox, sandbox_url: str, make_message: MakeMessage
) -> None:
    provider = build(sandbox_url, 5)
    accepted = {"sid": "SM1", "messages": [{"id": "wamid.1", "status": "0"}]}
    sandbox.play(provider.name, json_answer({**accepted, "padding": "x" * 1_000_000}, status=201))

    outcome = await provider.deliver(make_message())

    assert outcome.kind is OutcomeKind.UNKNOWN


async def test_an_untrusted_certificate_is_a_wrong_configuration(
    build: Build, sandbox: ProvidersSandbox, make_message: MakeMessage, self_signed: tuple[Path, Path]
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*self_signed)
    secure = TestServer(sandbox.application(), scheme="https")
    await secure.start_server(ssl=context)

    outcome = await build(str(secure.make_url("")), 5).deliver(make_message())
    await secure.close()

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.REJECTED_CONFIGURATION, "tls_refused")
    assert not sandbox.received


async def test_calls_run_concurrently(build: Build, sandbox_url: str, make_message: MakeMessage) -> None:
    provider = build(sandbox_url, 5)

    outcomes = await asyncio.gather(*(provider.deliver(make_message()) for _ in range(50)))
    await provider.close()

    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.ACCEPTED}
    assert len({outcome.provider_message_id for outcome in outcomes}) == 50
