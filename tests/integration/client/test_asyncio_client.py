"""The asyncio client against a scripted server: the rules are those of the Python client."""

import asyncio
import math
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
from tests.integration.client.scripted_server import ScriptedError, ScriptedServer

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


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, 4),
        (errors.DatabaseUnavailable(retry_after_seconds=1), 4),
        (OVERLOADED, 4),
        (errors.Overloaded(retry_after_seconds=60), 1),
        (errors.ResendTooSoon(retry_after_seconds=0.01), 1),
        (errors.InsufficientCredits(required_credits=3, available_credits=1), 1),
        (grpc.StatusCode.INTERNAL, 1),
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


async def test_a_guess_is_repeated_only_when_the_server_had_no_room_for_it(
    server: ScriptedServer, address: str
) -> None:
    server.errors.extend([OVERLOADED, grpc.StatusCode.UNAVAILABLE])
    async with connect(address, token="secret") as pulsa:
        with pytest.raises(PulsaError, match="UNAVAILABLE"):
            await pulsa.otps.VerifyOtp(VerifyOtpRequest())
    assert len(server.requests) == 2


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
    "cut", [None, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, errors.TokenInvalid()]
)
async def test_a_watched_balance_goes_on_when_its_stream_is_cut(
    server: ScriptedServer, address: str, cut: ScriptedError | None
) -> None:
    server.errors.extend([cut] if cut else [])
    async with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        assert [await anext(balances), await anext(balances)] == [WatchBalanceResponse()] * 2
    assert server.requests == [WatchBalanceRequest(organization_id="acme")] * 2


async def test_a_watched_balance_ends_when_the_server_refuses(server: ScriptedServer, address: str) -> None:
    server.errors.append(errors.PermissionMissing(permission="balance.read"))
    async with connect(address, token="secret") as pulsa:
        balances = pulsa.watch_balance("acme")
        await anext(balances)
        with pytest.raises(PulsaError, match="PERMISSION_MISSING"):
            await anext(balances)


async def test_a_call_that_its_task_cancels_is_cancelled(server: ScriptedServer, address: str) -> None:
    server.answers.clear()
    async with connect(address, token="secret") as pulsa:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pulsa.credits.GetBalance(REQUEST), 0.1)
    server.answers.set()
