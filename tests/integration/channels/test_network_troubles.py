"""What every provider over HTTP makes of a network that fails before, while and after it takes a request."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from server.channels.channel import Channel, Message, OutcomeKind
from server.channels.templates import Templates
from server.channels.twilio import Twilio, TwilioSettings
from server.channels.vonage import Vonage, VonageSettings
from server.channels.whatsapp import WhatsApp, WhatsAppSettings
from server.sandbox.providers import Answer, Conduct, ProvidersSandbox, json_answer

MakeMessage = Callable[..., Message]
Build = Callable[[str, float], Channel]


@pytest.fixture(params=["twilio", "vonage", "whatsapp"])
async def build(request: pytest.FixtureRequest, templates: Templates) -> AsyncIterator[Build]:
    """Makes the provider for a base URL and a timeout in seconds, and closes it after the test."""
    built: list[Channel] = []

    def make(url: str, timeout_seconds: float) -> Channel:
        channel: Channel
        if request.param == "twilio":
            channel = Twilio(TwilioSettings("AC1", "t", "+1", base_url=url, timeout_seconds=timeout_seconds), templates)
        elif request.param == "vonage":
            channel = Vonage(VonageSettings("k", "s", "x", base_url=url, timeout_seconds=timeout_seconds), templates)
        else:
            channel = WhatsApp(WhatsAppSettings("1", "t", "otp", base_url=url, timeout_seconds=timeout_seconds))
        built.append(channel)
        return channel

    yield make
    for channel in built:
        await channel.close()


@contextmanager
def listening(*, backlog: int = 5) -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server, f"http://127.0.0.1:{server.getsockname()[1]}"


async def test_nothing_listens(build: Build, make_message: MakeMessage) -> None:
    with listening() as (_, url):
        pass

    outcome = await build(url, 5).deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.NOT_SENT, "unreachable")


async def test_the_connection_is_not_taken_in_time(build: Build, make_message: MakeMessage) -> None:
    """TLS is not answered, so that no request can have left although the socket is connected."""
    with listening() as (_, url):
        outcome = await build(url.replace("http:", "https:"), 0.2).deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.NOT_SENT, "unreachable")


async def test_an_answer_that_is_too_slow_leaves_it_unknown(
    build: Build, sandbox: ProvidersSandbox, sandbox_url: str, make_message: MakeMessage
) -> None:
    channel = build(sandbox_url, 0.3)
    sandbox.play(channel.provider, Answer(conduct=Conduct.HANG))

    outcome = await channel.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "timeout")
    assert len(sandbox.received) == 1


async def test_a_reset_after_the_request_was_read_leaves_it_unknown(
    build: Build, sandbox: ProvidersSandbox, sandbox_url: str, make_message: MakeMessage
) -> None:
    channel = build(sandbox_url, 5)
    sandbox.play(channel.provider, Answer(conduct=Conduct.RESET))

    outcome = await channel.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "connection_lost")
    assert len(sandbox.received) == 1


async def test_a_reset_before_the_request_was_read_leaves_it_unknown(build: Build, make_message: MakeMessage) -> None:
    """From here it looks just like the other: the request was on its way."""

    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        outcome = await build(url, 5).deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "connection_lost")


async def test_a_body_that_ends_too_early_leaves_it_unknown(
    build: Build, sandbox: ProvidersSandbox, sandbox_url: str, make_message: MakeMessage
) -> None:
    channel = build(sandbox_url, 5)
    body = '{"sid": "SM1", "messages": [{"id": "wamid.1", "status": "0"}]}'
    sandbox.play(channel.provider, Answer(201, body, conduct=Conduct.TRUNCATE))

    outcome = await channel.deliver(make_message())

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.UNKNOWN, "connection_lost")


async def test_a_body_without_end_is_not_read(
    build: Build, sandbox: ProvidersSandbox, sandbox_url: str, make_message: MakeMessage
) -> None:
    channel = build(sandbox_url, 5)
    accepted = {"sid": "SM1", "messages": [{"id": "wamid.1", "status": "0"}]}
    sandbox.play(channel.provider, json_answer({**accepted, "padding": "x" * 1_000_000}, status=201))

    outcome = await channel.deliver(make_message())

    assert outcome.kind is OutcomeKind.UNKNOWN


async def test_a_certificate_that_nobody_vouches_for_is_a_wrong_configuration(
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


async def test_calls_run_side_by_side(build: Build, sandbox_url: str, make_message: MakeMessage) -> None:
    channel = build(sandbox_url, 5)

    outcomes = await asyncio.gather(*(channel.deliver(make_message()) for _ in range(50)))
    await channel.close()

    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.ACCEPTED}
    assert len({outcome.provider_message_id for outcome in outcomes}) == 50
