"""Abusive clients of the sidecar: its memory stays bounded, and other clients are served."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus

import aiohttp
import pytest

from server.webhook.sidecar import Sidecar, SidecarLimits
from tests.integration.webhook.fake_credit_service import FakeCreditService

SIGNED = {"Stripe-Signature": "t=1,v1=abc"}
MEGABYTE = 1 << 20


@pytest.fixture
def memory() -> Iterator[None]:
    """Fails if Python ever had more than 12 MiB allocated during the test."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * MEGABYTE


async def chunks(count: int, size: int = 65_536) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


@pytest.mark.usefixtures("memory")
async def test_a_body_of_20_megabytes_is_refused_with_and_without_content_length(
    http: aiohttp.ClientSession, webhook: str, service: FakeCreditService
) -> None:
    announced = {"Content-Length": str(20 * MEGABYTE)}
    for headers in (announced, {}):
        async with http.post(webhook, data=chunks(320), headers=SIGNED | headers) as response:
            assert response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert service.events == []


async def test_a_body_of_the_maximum_size_is_accepted_and_one_byte_more_is_refused(
    http: aiohttp.ClientSession, webhook: str, service: FakeCreditService, limits: SidecarLimits
) -> None:
    statuses = []
    for size in (limits.body_bytes, limits.body_bytes + 1):
        async with http.post(webhook, data=chunks(1, size), headers=SIGNED) as response:
            statuses.append(response.status)
    assert statuses == [HTTPStatus.OK, HTTPStatus.REQUEST_ENTITY_TOO_LARGE]
    assert [len(event.payload) for event in service.events] == [limits.body_bytes]


async def test_a_body_that_does_not_arrive_times_out(
    http: aiohttp.ClientSession, webhook: str, service: FakeCreditService
) -> None:
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async with http.post(webhook, data=slow(), headers=SIGNED) as response:
        assert response.status == HTTPStatus.REQUEST_TIMEOUT
    assert service.events == []


async def test_headers_that_do_not_arrive_time_out(sidecar: Sidecar) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    writer.write(b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\n")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_an_idle_connection_is_closed_for_a_new_one(
    sidecar: Sidecar, http: aiohttp.ClientSession, webhook: str, healthz: str, limits: SidecarLimits
) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", sidecar.port) for _ in range(limits.connections_at_once)]
    async with http.get(healthz) as response:
        assert await response.text() == "ok\n"
    async with http.post(webhook, data=b"{}", headers=SIGNED) as response:
        assert response.status == HTTPStatus.OK
    assert await asyncio.wait_for(idle[0][0].read(), 10) == b""
    for _, writer in idle:
        writer.close()


async def test_too_many_concurrent_webhooks_are_answered_503_and_health_is_still_served(
    http: aiohttp.ClientSession, webhook: str, healthz: str, limits: SidecarLimits
) -> None:
    finish = asyncio.Event()
    begun = asyncio.Queue[None]()

    async def held() -> AsyncIterator[bytes]:
        yield b"{"
        begun.put_nowait(None)
        await finish.wait()
        yield b"}"

    async def post(body: AsyncIterator[bytes] | bytes) -> int:
        async with http.post(webhook, data=body, headers=SIGNED) as response:
            return response.status

    reading = [asyncio.create_task(post(held())) for _ in range(limits.requests_at_once)]
    for _ in reading:
        await begun.get()
    async with asyncio.timeout(10):
        while await post(b"{}") != HTTPStatus.SERVICE_UNAVAILABLE:
            pass
    async with http.get(healthz) as response:
        assert response.status == HTTPStatus.OK
    finish.set()
    assert set(await asyncio.gather(*reading)) == {HTTPStatus.OK}
    assert await post(b"{}") == HTTPStatus.OK


JUNK = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x00" * 5000,
    b"POST /stripe/webhook HTTP/1.1\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
    b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
    b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nStripe-Signature: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nStripe-Signature: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@pytest.mark.usefixtures("memory")
async def test_a_thousand_junk_requests_change_nothing(
    sidecar: Sidecar,
    http: aiohttp.ClientSession,
    healthz: str,
    service: FakeCreditService,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def send(junk: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
        try:
            writer.write(junk)
            writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    answers: set[bytes] = set()
    for _ in range(25):
        answers.update(await asyncio.gather(*(send(junk) for junk in JUNK * 4)))
        async with http.get(healthz) as response:
            assert response.status == HTTPStatus.OK
    assert {answer.split(b" ", 2)[1] for answer in answers if answer} <= {b"400", b"404", b"405"}
    assert service.events == []
    assert caplog.text == ""
