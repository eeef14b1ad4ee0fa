"""The gRPC server: health, drain, reflection, ports, the size of messages, and a restart of its accept loop."""

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped] # has no types
from pulsa.credit.v1.credit_service_pb2 import RecordStripeEventRequest, WatchBalanceRequest
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.errors import explain
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, SendOtpResponse
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub

from server.api.server import ListenOptions
from tests.integration.api.stub_server import SERVICES, StubServer, end_accept_loop, run_stub_server
from tests.valid_requests import valid_request
from tests.waiting import SECONDS, until

SERVING = health_pb2.HealthCheckResponse.SERVING
HEALTH = bytes.fromhex("000000000208")  # a message of two bytes, whose field 1 follows
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def send(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> grpc.aio.UnaryUnaryCall[SendOtpRequest, SendOtpResponse]:
    request: Any = valid_request(SendOtpRequest.DESCRIPTOR)
    return OtpServiceStub(channel).SendOtp(request, metadata=stub_server.metadata("otp.send"))


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def test_health_is_served_for_the_server_and_each_service(channel: grpc.aio.Channel) -> None:
    for name in ("", *(service.full_name for service in SERVICES)):
        assert await health_of(channel, name) == SERVING
    for name in ("liveness", "readiness", "database"):
        assert await health_of(channel, name) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(channel, "unknown.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def haproxy_check(port: int) -> bytes:
    """The answer to what HAProxy sends as a health check, by its configuration in docs/."""
    configuration = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(bytes.fromhex("".join(re.findall(r"tcp-check send-binary ([0-9a-f]+)", configuration))))
    answer = b""
    while HEALTH not in answer:
        answer += await asyncio.wait_for(reader.read(4096), SECONDS)
    writer.close()
    return answer


async def test_the_documented_check_of_haproxy_is_answered_until_the_drain(stub_server: StubServer) -> None:
    server = stub_server.grpc_server
    assert HEALTH + bytes([SERVING]) in await haproxy_check(server.port)
    draining = asyncio.create_task(server.drain(lame_duck_seconds=1, grace_seconds=5))
    await asyncio.sleep(0)
    assert HEALTH + bytes([NOT_SERVING]) in await haproxy_check(server.port)
    await draining


async def test_the_end_of_the_accept_loop_ends_neither_the_server_nor_a_running_call(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> None:
    stub_server.behavior.may_answer.clear()
    running = send(stub_server, channel)
    await until(lambda: len(stub_server.behavior.calls) == 1)

    await end_accept_loop(stub_server)
    async with grpc.aio.insecure_channel(stub_server.address) as other:
        await other.channel_ready()
        assert await health_of(other, "") == SERVING
    stub_server.behavior.may_answer.set()

    assert await running == SendOtpResponse()


async def test_a_drain_reports_not_serving_lets_calls_finish_and_ends_streams(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> None:
    stub_server.behavior.may_answer.clear()
    running = send(stub_server, channel)
    watch = CreditServiceStub(channel).WatchBalance(
        WatchBalanceRequest(organization_id="acme"), metadata=stub_server.metadata("balance.read")
    )
    health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    await until(lambda: len(stub_server.behavior.calls) == 2)
    assert (await health.read()).status == SERVING

    draining = asyncio.create_task(stub_server.grpc_server.drain(lame_duck_seconds=1, grace_seconds=30))
    assert (await health.read()).status == NOT_SERVING
    names = ("liveness", "readiness", "database")
    assert [await health_of(channel, name) for name in names] == [SERVING, NOT_SERVING, SERVING]
    late = send(stub_server, channel)  # during the lame duck time calls are still served
    await until(lambda: len(stub_server.behavior.calls) == 3)
    health.cancel()
    assert await watch.read() == grpc.aio.EOF
    stub_server.behavior.may_answer.set()

    assert await running == await late == SendOtpResponse()
    assert await watch.code() is grpc.StatusCode.OK
    await asyncio.wait_for(draining, 20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(stub_server, channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_drain_does_not_wait_longer_than_its_grace(stub_server: StubServer, channel: grpc.aio.Channel) -> None:
    stub_server.behavior.may_answer.clear()
    stuck = send(stub_server, channel)
    await until(lambda: len(stub_server.behavior.calls) == 1)

    await asyncio.wait_for(stub_server.grpc_server.drain(lame_duck_seconds=0, grace_seconds=0.1), 20)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stuck
    assert explain(caught.value).reason == "SERVER_DRAINING"
    assert stub_server.count("SendOtp", "UNAVAILABLE") == 1


async def test_calls_that_wait_inside_grpc_hear_that_the_server_drains(tmp_path: Path) -> None:
    """Otherwise gRPC ends them as CANCELLED, which no retry policy repeats. Those that come later find no server."""
    ends: Counter[tuple[str, str]] = Counter()
    for _ in range(5):
        async with (
            run_stub_server(tmp_path) as stub_server,
            grpc.aio.insecure_channel(stub_server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
        ):
            await channel.channel_ready()
            burst = [send(stub_server, channel) for _ in range(300)]
            await until(lambda: bool(stub_server.behavior.calls))
            await stub_server.grpc_server.drain(lame_duck_seconds=0, grace_seconds=30)
            for answer in await asyncio.gather(*burst, return_exceptions=True):
                error = explain(answer) if isinstance(answer, grpc.aio.AioRpcError) else None
                ends[(error.code.name, error.reason) if error else ("OK", "")] += 1

    draining = ("UNAVAILABLE", "SERVER_DRAINING")
    assert ends[draining] > 0
    assert set(ends) <= {("OK", ""), draining, ("UNAVAILABLE", "")}


async def test_reflection_lists_the_services_when_enabled(tmp_path: Path) -> None:
    options = ListenOptions(address="127.0.0.1:0", reflection=True)
    async with (
        run_stub_server(tmp_path, listening=options) as stub_server,
        grpc.aio.insecure_channel(stub_server.address) as channel,
    ):
        names = await reflected_names(channel)

    assert names >= {service.full_name for service in SERVICES}


async def test_reflection_is_disabled_by_default(channel: grpc.aio.Channel) -> None:
    """Without a request: gRPC's own client ends as INTERNAL where the server's answer overtakes what it sends."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def reflected_names(channel: grpc.aio.Channel) -> set[str]:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
    return {service.name async for answer in answers for service in answer.list_services_response.service}


async def test_a_second_server_on_the_port_fails_unless_the_port_is_shared(tmp_path: Path) -> None:
    async with run_stub_server(tmp_path) as stub_server:
        with pytest.raises(RuntimeError, match="bind"):
            async with run_stub_server(tmp_path, listening=ListenOptions(address=stub_server.address)):
                pass

    sharing = ListenOptions(address="127.0.0.1:0", share_port=True)
    async with run_stub_server(tmp_path, listening=sharing) as first:
        again = ListenOptions(address=first.address, share_port=True)
        async with run_stub_server(tmp_path, listening=again) as second:
            assert second.grpc_server.port == first.grpc_server.port


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (262_144, grpc.StatusCode.OK),
        (262_145, grpc.StatusCode.INVALID_ARGUMENT),
        (1_048_577, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_messages_are_bounded(
    stub_server: StubServer, channel: grpc.aio.Channel, size: int, code: grpc.StatusCode
) -> None:
    request = RecordStripeEventRequest(payload=b"x" * size, signature="t=1")

    call = CreditServiceStub(channel).RecordStripeEvent(request, metadata=stub_server.metadata("stripe.relay"))

    assert await call.code() is code
