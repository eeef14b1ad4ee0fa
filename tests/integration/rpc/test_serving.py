"""The server as a whole: health, drain, reflection, ports and the size of messages."""

import asyncio
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped] # has no types
from pulsa.credit.v1.credit_service_pb2 import RecordStripeEventRequest, WatchBalanceRequest
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, SendOtpResponse
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub

from server.rpc.serving import Listening
from tests.integration.rpc.house import SERVICES, House, open_house, stop_grpc, until
from tests.valid_requests import valid_request
from tests.waiting import SECONDS

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def send(house: House, channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryCall[SendOtpRequest, SendOtpResponse]:
    request: Any = valid_request(SendOtpRequest.DESCRIPTOR)
    return OtpServiceStub(channel).SendOtp(request, metadata=house.metadata("otp.send"))


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


def stop_often(folder: Path) -> None:
    """In a process of its own, which a write into memory that is not gRPC's any more would bring down."""

    async def fill_freed_memory() -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.0005)

    async def stop() -> None:
        async with open_house(folder) as house:
            fillers = [asyncio.create_task(fill_freed_memory()) for _ in range(20)]
            for _ in range(20):
                await stop_grpc(house)
                async with grpc.aio.insecure_channel(house.address) as channel:
                    await channel.channel_ready()
            for filler in fillers:
                filler.cancel()

    asyncio.run(stop())


async def test_health_is_known_for_the_server_and_each_service(channel: grpc.aio.Channel) -> None:
    for name in ("", *(service.full_name for service in SERVICES)):
        assert await health_of(channel, name) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(channel, "unheard.of")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_path_that_is_no_text_ends_neither_the_server_nor_a_call(
    house: House, channel: grpc.aio.Channel
) -> None:
    house.room.open.clear()
    inside = send(house, channel)
    await until(lambda: len(house.room.calls) == 1)

    await stop_grpc(house)
    async with grpc.aio.insecure_channel(house.address) as other:
        await other.channel_ready()
        assert await health_of(other, "") == SERVING
    house.room.open.set()

    assert await inside == SendOtpResponse()


def test_memory_is_whole_after_grpc_has_stopped(tmp_path: Path) -> None:
    house = get_context("spawn").Process(target=stop_often, args=(tmp_path,), daemon=True)
    house.start()
    house.join(SECONDS)

    assert house.exitcode == 0


async def test_a_drain_says_so_lets_calls_finish_and_ends_streams(house: House, channel: grpc.aio.Channel) -> None:
    house.room.open.clear()
    inside = send(house, channel)
    watch = CreditServiceStub(channel).WatchBalance(
        WatchBalanceRequest(organization_id="acme"), metadata=house.metadata("balance.read")
    )
    health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    await until(lambda: len(house.room.calls) == 2)
    assert (await health.read()).status == SERVING

    draining = asyncio.create_task(house.server.drain(lame_duck_seconds=1, grace_seconds=30))
    assert (await health.read()).status == NOT_SERVING
    late = send(house, channel)  # in the lame duck time calls are still served
    await until(lambda: len(house.room.calls) == 3)
    health.cancel()
    assert await watch.read() == grpc.aio.EOF
    house.room.open.set()

    assert await inside == await late == SendOtpResponse()
    assert await watch.code() is grpc.StatusCode.OK
    await asyncio.wait_for(draining, 20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(house, channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_drain_does_not_wait_longer_than_its_grace(house: House, channel: grpc.aio.Channel) -> None:
    house.room.open.clear()
    stuck = send(house, channel)
    await until(lambda: len(house.room.calls) == 1)

    await asyncio.wait_for(house.server.drain(lame_duck_seconds=0, grace_seconds=0.1), 20)

    with pytest.raises(grpc.aio.AioRpcError):
        await stuck


async def test_reflection_names_the_services_when_switched_on(tmp_path: Path) -> None:
    place = Listening(address="127.0.0.1:0", reflection=True)
    async with open_house(tmp_path, listening=place) as house, grpc.aio.insecure_channel(house.address) as channel:
        names = await reflected_names(channel)

    assert names >= {service.full_name for service in SERVICES}


async def test_reflection_is_off_otherwise(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reflected_names(channel)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def reflected_names(channel: grpc.aio.Channel) -> set[str]:
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    talk = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([question]))
    return {service.name async for answer in talk for service in answer.list_services_response.service}


async def test_a_second_server_on_the_port_fails_unless_sharing_was_asked_for(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        with pytest.raises(RuntimeError, match="bind"):
            async with open_house(tmp_path, listening=Listening(address=house.address)):
                pass

    sharing = Listening(address="127.0.0.1:0", share_port=True)
    async with open_house(tmp_path, listening=sharing) as first:
        again = Listening(address=first.address, share_port=True)
        async with open_house(tmp_path, listening=again) as second:
            assert second.server.port == first.server.port


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (262_144, grpc.StatusCode.OK),
        (262_145, grpc.StatusCode.INVALID_ARGUMENT),
        (1_048_577, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_messages_are_bounded(house: House, channel: grpc.aio.Channel, size: int, code: grpc.StatusCode) -> None:
    request = RecordStripeEventRequest(payload=b"x" * size, signature="t=1")

    call = CreditServiceStub(channel).RecordStripeEvent(request, metadata=house.metadata("stripe.relay"))

    assert await call.code() is code
