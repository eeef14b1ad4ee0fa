"""The HTTP status that Stripe gets, by the answer of the server to its webhook."""

import asyncio
from pathlib import Path

import aiohttp
import grpc
import pytest
from pulsa.tokens import token_from_file

from server.webhook.relay import Relay
from server.webhook.sidecar import start_sidecar
from tests.fault_proxy import proxy_before
from tests.integration.webhook.fake_credit_service import FakeCreditService

SIGNED = {"Stripe-Signature": "t=1,v1=abc"}


async def post(http: aiohttp.ClientSession, webhook: str, body: bytes, **headers: str) -> tuple[int, str]:
    async with http.post(webhook, data=body, headers=SIGNED | headers) as response:
        return response.status, await response.text()


async def test_body_and_signature_are_relayed_unchanged(
    http: aiohttp.ClientSession, webhook: str, service: FakeCreditService
) -> None:
    body = bytes(range(256)) * 1024
    assert await post(http, webhook, body, **{"Content-Encoding": "gzip"}) == (200, "")
    assert [(event.payload, event.signature) for event in service.events] == [(body, "t=1,v1=abc")]
    assert service.tokens == ["Bearer first"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.UNAUTHENTICATED, 503),
        (grpc.StatusCode.PERMISSION_DENIED, 503),
        (grpc.StatusCode.INTERNAL, 503),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 503),
    ],
)
async def test_an_error_becomes_an_http_status_without_a_body(
    http: aiohttp.ClientSession, webhook: str, service: FakeCreditService, code: grpc.StatusCode, status: int
) -> None:
    service.errors.append(code)
    assert await post(http, webhook, b"{}") == (status, "")
    assert len(service.events) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_a_server_that_is_overloaded_or_unavailable_is_retried(
    http: aiohttp.ClientSession, webhook: str, service: FakeCreditService, code: grpc.StatusCode
) -> None:
    service.errors.extend([code, code])
    assert await post(http, webhook, b"{}") == (200, "")
    assert len(service.events) == 3


@pytest.mark.parametrize("signature", ["", "t=1,v1=é", "x" * 4097])
async def test_a_malformed_signature_is_not_relayed(
    http: aiohttp.ClientSession, webhook: str, service: FakeCreditService, signature: str
) -> None:
    assert await post(http, webhook, b"{}", **{"Stripe-Signature": signature}) == (400, "")
    assert service.events == []


async def test_a_rotated_token_is_used_without_a_restart(
    http: aiohttp.ClientSession, webhook: str, service: FakeCreditService, token_file: Path
) -> None:
    await post(http, webhook, b"{}")
    await asyncio.to_thread(token_file.write_text, "second\n")
    await post(http, webhook, b"{}")
    assert service.tokens == ["Bearer first", "Bearer second"]


async def test_a_token_that_cannot_be_read_is_answered_503(
    http: aiohttp.ClientSession, webhook: str, token_file: Path
) -> None:
    await asyncio.to_thread(token_file.unlink)
    assert await post(http, webhook, b"{}") == (503, "")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "", 405), ("PUT", "", 405), ("POST", "/more", 404)])
async def test_other_methods_and_paths_are_refused(
    http: aiohttp.ClientSession, webhook: str, method: str, path: str, status: int
) -> None:
    async with http.request(method, webhook + path, headers=SIGNED) as response:
        assert response.status == status


async def test_an_unreachable_server_is_answered_503(http: aiohttp.ClientSession, token_file: Path) -> None:
    relay = Relay("127.0.0.1:1", token=token_from_file(token_file), credentials=None, timeout_seconds=0.3)
    sidecar = await start_sidecar(relay, host="127.0.0.1", port=0)
    assert await post(http, f"http://127.0.0.1:{sidecar.port}/stripe/webhook", b"{}") == (503, "")
    await sidecar.stop()


async def test_a_connection_may_take_seconds_to_open(
    http: aiohttp.ClientSession, server: str, token_file: Path
) -> None:
    host, port = server.split(":")
    async with proxy_before(host, int(port)) as (proxy, slow_port):
        proxy.delay_seconds = 1.5
        address = f"127.0.0.1:{slow_port}"
        relay = Relay(address, token=token_from_file(token_file), credentials=None, timeout_seconds=20)
        sidecar = await start_sidecar(relay, host="127.0.0.1", port=0)
        assert await post(http, f"http://127.0.0.1:{sidecar.port}/stripe/webhook", b"{}") == (200, "")
        await sidecar.stop()


async def test_a_stop_waits_for_the_webhook_that_is_being_relayed(
    http: aiohttp.ClientSession, service: FakeCreditService, server: str, token_file: Path
) -> None:
    relay = Relay(server, token=token_from_file(token_file), credentials=None, timeout_seconds=30)
    sidecar = await start_sidecar(relay, host="127.0.0.1", port=0)
    service.may_answer.clear()
    answer = asyncio.create_task(post(http, f"http://127.0.0.1:{sidecar.port}/stripe/webhook", b"{}"))
    await asyncio.wait_for(service.arrived.wait(), 10)
    stopping = asyncio.create_task(sidecar.stop())
    service.may_answer.set()
    assert await answer == (200, "")
    await stopping
