"""The asyncio client against a scripted server: the rules are those of the Python client."""

import asyncio
import math
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from pulsa.aio import connect
from pulsa.credit.v1.credit_service_pb2 import (
    GetBalanceRequest,
    GetBalanceResponse,
    GetPricingRequest,
    WatchBalanceRequest,
    WatchBalanceResponse,
)
from pulsa.errors import PulsaError
from pulsa.otp.v1.otp_service_pb2 import VerifyOtpRequest

from server import errors
from server.api.status import internal_error_status
from tests.fault_proxy import Fault, proxy_before
from tests.integration.client.scripted_server import ScriptedError, ScriptedServer, refusing_server
from tests.waiting import until

REQUEST = GetBalanceRequest(organization_id="acme")
OVERLOADED = errors.Overloaded(retry_after_seconds=0.01)


@pytest.fixture
def server() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def address(server: ScriptedServer) -> Iterator[str]:
    grpc_server, address = server.start()
    yield address
    grpc_server.stop(None).wait()


async def test_a_call_has_a_new_token_and_a_deadline(server: ScriptedServer, address: str) -> None:
    tokens = iter(["first", "second"])
    async with connect(address, token=lambda: next(tokens), timeout_seconds=30) as pulsa:
        assert await pulsa.credits.GetBalance(REQUEST) == GetBalanceResponse()
        await pulsa.credits.GetBalance(REQUEST, timeout=60)
    assert server.tokens == ["Bearer first", "Bearer second"]
    short, long = server.seconds_left
    assert short is not None
    assert long is not None
    assert short < 45 < long < 75  # gRPC rounds them up


async def test_a_connection_may_take_seconds_to_open(address: str) -> None:
    """As TLS does with a server that thousands of clients find again at once."""
    host, port = address.split(":")
    async with (
        proxy_before(host, int(port)) as (proxy, slow_port),
        connect(f"127.0.0.1:{slow_port}", token="secret", timeout_seconds=60) as pulsa,
    ):
        proxy.delay_seconds = 1.5
        assert await pulsa.credits.GetBalance(REQUEST) == GetBalanceResponse()


async def test_a_stream_is_opened_again_when_its_host_has_fallen_silent(server: ScriptedServer, address: str) -> None:
    """Nothing but a ping tells, as nothing is sent; this takes the 25 s of the client's options."""
    host, port = address.split(":")
    server.ends.clear()
    async with (
        proxy_before(host, int(port)) as (proxy, silent_port),
        connect(f"127.0.0.1:{silent_port}", token="secret") as pulsa,
    ):
        answers = pulsa.watch_balance("acme")
        await anext(answers)
        proxy.set(Fault.SILENCE)
        again = asyncio.ensure_future(anext(answers))
        await until(lambda: len(proxy.accepted) == 2)
        proxy.set(Fault.NONE)
        await again
        server.ends.set()


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, 4),
        (grpc.StatusCode.CANCELLED, 4),
        (errors.DatabaseUnavailable(retry_after_seconds=1), 4),
        (OVERLOADED, 4),
        (errors.Overloaded(retry_after_seconds=60), 1),
        (errors.ResendTooSoon(retry_after_seconds=0.01), 1),
        (errors.InsufficientCredits(required_credits=3, available_credits=1), 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.UNKNOWN, 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 1),
    ],
)
async def test_only_what_is_safe_is_repeated(
    server: ScriptedServer, address: str, error: ScriptedError, calls: int
) -> None:
    server.errors.extend([error] * 10)
    async with connect(address, token="secret") as pulsa:
        with pytest.raises(PulsaError) as refused:
            await pulsa.credits.GetBalance(REQUEST)
    assert server.requests == [REQUEST] * calls
    assert refused.value.reason == getattr(error, "reason", "")
    assert isinstance(refused.value.__cause__, grpc.RpcError)


@pytest.mark.parametrize("unknown", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_a_guess_is_repeated_only_when_the_server_had_no_room_for_it(
    server: ScriptedServer, address: str, unknown: grpc.StatusCode
) -> None:
    server.errors.extend([OVERLOADED, unknown])
    async with connect(address, token="secret") as pulsa:
        with pytest.raises(PulsaError, match=unknown.name):
            await pulsa.otps.VerifyOtp(VerifyOtpRequest())
    assert len(server.requests) == 2


async def test_a_repeat_has_the_time_that_is_left(server: ScriptedServer, address: str) -> None:
    server.errors.append(errors.Overloaded(retry_after_seconds=0.5))
    async with connect(address, token="secret", timeout_seconds=30) as pulsa:
        await pulsa.credits.GetBalance(REQUEST, timeout=5)
    first, second = server.seconds_left
    assert first is not None
    assert second is not None
    assert second < first - 0.4


async def test_a_guess_that_the_server_did_not_look_at_is_repeated() -> None:
    refused: list[int] = []
    with refusing_server(refused) as address:
        async with connect(address, token="secret") as pulsa:
            with pytest.raises(PulsaError, match="UNAVAILABLE"):
                await pulsa.otps.VerifyOtp(VerifyOtpRequest())
    assert len(refused) >= 4


@pytest.mark.parametrize("request_", [None, {"organization_id": "acme"}, GetPricingRequest(organization_id="acme")])
async def test_a_request_that_is_not_the_rpcs_message_is_refused(
    server: ScriptedServer, address: str, request_: Any
) -> None:
    async with connect(address, token="secret") as pulsa:
        with pytest.raises(TypeError, match="GetBalanceRequest"):
            await pulsa.credits.GetBalance(request_)
        with pytest.raises(TypeError, match="WatchBalanceRequest"):
            pulsa.credits.WatchBalance(request_)
    assert server.requests == []


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e10, 0])
async def test_a_deadline_that_grpc_takes_for_another_is_refused(
    server: ScriptedServer, address: str, seconds: float
) -> None:
    with pytest.raises(ValueError, match="timeout"):
        connect(address, token="secret", timeout_seconds=seconds)
    async with connect(address, token="secret") as pulsa:
        with pytest.raises(ValueError, match="timeout"):
            await pulsa.credits.GetBalance(REQUEST, timeout=seconds)
    assert server.requests == []


@pytest.mark.parametrize(
    "cut",
    [
        None,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        OVERLOADED,
        errors.TokenInvalid(),
    ],
)
async def test_a_watched_balance_goes_on_when_its_stream_is_cut(
    server: ScriptedServer, address: str, cut: ScriptedError | None
) -> None:
    server.errors.extend([cut] if cut else [])
    async with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        assert [await anext(balances), await anext(balances)] == [WatchBalanceResponse()] * 2
    assert server.requests == [WatchBalanceRequest(organization_id="acme")] * 2


@pytest.mark.parametrize(
    "refusal",
    [
        errors.PermissionMissing(permission="balance.read"),
        internal_error_status("1"),  # unlike a proxy's, it has a reason
        grpc.StatusCode.DEADLINE_EXCEEDED,
    ],
)
async def test_a_watched_balance_ends_when_the_server_refuses(
    server: ScriptedServer, address: str, refusal: ScriptedError
) -> None:
    server.errors.append(refusal)
    async with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        await anext(balances)
        with pytest.raises(PulsaError):
            await anext(balances)
    assert len(server.requests) == 1


async def test_a_watched_balance_ends_with_a_token_that_is_refused_from_the_beginning(
    server: ScriptedServer, address: str
) -> None:
    server.errors.extend([errors.TokenInvalid()] * 2)
    async with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        await anext(balances)
        server.messages = 0
        with pytest.raises(PulsaError, match="TOKEN_INVALID"):
            await anext(balances)
    assert len(server.requests) == 2


async def test_watched_events_go_on_after_the_last_cursor(server: ScriptedServer, address: str) -> None:
    server.errors.append(grpc.StatusCode.UNAVAILABLE)
    async with connect(address, token="secret") as pulsa:
        events = pulsa.watch_events("acme", cursor="begin")
        assert [(await anext(events)).cursor for _ in range(3)] == ["begin+", "begin++", "begin+++"]


async def test_a_stream_is_opened_again_after_a_growing_pause(server: ScriptedServer, address: str) -> None:
    server.messages = 0
    server.errors.extend([grpc.StatusCode.UNAVAILABLE] * 3 + [errors.PermissionMissing(permission="balance.read")])
    began = time.monotonic()
    async with connect(address, token="secret") as pulsa:
        with pytest.raises(PulsaError, match="PERMISSION_MISSING"):
            await anext(pulsa.watch_balance("acme"))
    assert time.monotonic() - began >= 0.1 + 0.2 + 0.4


async def test_grpc_repeats_no_stream(server: ScriptedServer, address: str) -> None:
    server.messages = 0
    server.errors.extend([grpc.StatusCode.UNAVAILABLE] * 2)
    async with connect(address, token="secret") as pulsa:
        stream = pulsa.credits.WatchBalance(WatchBalanceRequest(organization_id="acme"))
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            await anext(aiter(stream))
    assert len(server.requests) == 1


async def test_a_call_that_its_task_cancels_is_cancelled_and_not_repeated(server: ScriptedServer, address: str) -> None:
    server.answers.clear()
    async with connect(address, token="secret") as pulsa:
        call = asyncio.ensure_future(pulsa.credits.GetBalance(REQUEST))
        await until(lambda: server.requests)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.answers.set()
        await pulsa.credits.GetBalance(REQUEST)
    assert server.requests == [REQUEST] * 2
