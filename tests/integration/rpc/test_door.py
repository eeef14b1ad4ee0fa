"""The door under a real server: limits, deadlines, bad bytes, failures and what is counted and logged."""

import asyncio
import math
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped] # no py.typed beside its stubs
    BadRequest,
    ErrorInfo,
    RetryInfo,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types
from grpc_status import rpc_status  # type: ignore[import-untyped] # has no types
from prometheus_client import CollectorRegistry
from pulsa.credit.v1.credit_service_pb2 import WatchBalanceRequest
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, SendOtpResponse
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub
from structlog.testing import capture_logs

from server.errors import InsufficientCredits
from server.rpc.development_key import development_key
from server.rpc.door import Door
from server.rpc.serving import Listening
from server.rpc.tokens import TokenVerifier
from tests.integration.rpc.house import SERVICES, House, Room, open_house, tiny_servicer, until
from tests.valid_requests import valid_request

SEND = "/pulsa.otp.v1.OtpService/SendOtp"
LIMIT, CROWD = 8, 1500
"""More than wait by default: gRPC would cancel some of so many that arrive at once."""


def send_request() -> SendOtpRequest:
    request = valid_request(SendOtpRequest.DESCRIPTOR)
    assert isinstance(request, SendOtpRequest)
    return request


def details_of(error: grpc.aio.AioRpcError) -> dict[str, ErrorInfo | BadRequest | RetryInfo]:
    status = rpc_status.from_call(error)
    found = {}
    for packed in status.details:
        for kind in (ErrorInfo, BadRequest, RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
    return found


async def failure_of(call: grpc.aio.UnaryUnaryCall[SendOtpRequest, SendOtpResponse]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_servicer_learns_who_calls_and_until_when(house: House, channel: grpc.aio.Channel) -> None:
    stub = OtpServiceStub(channel)

    await stub.SendOtp(send_request(), metadata=house.metadata("otp.send"))
    await stub.SendOtp(send_request(), metadata=house.metadata("otp.send"), timeout=60)

    for_ever, limited = house.room.calls
    assert (for_ever.caller.subject, for_ever.caller.organization_id) == ("tester", "acme")
    assert for_ever.deadline == math.inf
    assert 30 < limited.deadline - time.time() < 61


async def test_a_call_whose_deadline_passed_on_its_way_is_not_worked_for(
    house: House, channel: grpc.aio.Channel
) -> None:
    await OtpServiceStub(channel).SendOtp(send_request(), metadata=house.metadata("otp.send"))
    # This call blocks the loop that the server runs on as well: the server meets it when its deadline has passed.
    with grpc.insecure_channel(house.address) as blocking, pytest.raises(grpc.RpcError) as caught:
        OtpServiceStub(blocking).SendOtp(send_request(), metadata=house.metadata("otp.send"), timeout=0.3)
    await OtpServiceStub(channel).SendOtp(send_request(), metadata=house.metadata("otp.send"))

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(house.room.calls) == 2


async def test_a_call_whose_deadline_passed_at_the_door_is_not_worked_for(tmp_path: Path) -> None:
    """GRPC itself catches nearly all of these; one that it has just read is ours to refuse."""
    key, room = development_key(tmp_path), Room()
    door = Door(TokenVerifier(key.public_key_file), registry=CollectorRegistry())
    context = LateContext()
    handler: Any = door.handler(SERVICES[1], tiny_servicer(SERVICES[1], room))

    await handler.service(context).unary_unary(send_request().SerializeToString(), context)

    assert context.aborted_with is grpc.StatusCode.DEADLINE_EXCEEDED
    assert room.calls == []


class LateContext:
    """Gives what gRPC gives a handler, for a call whose time is up."""

    method = SEND
    invocation_metadata = ()
    aborted_with: grpc.StatusCode | None = None

    def time_remaining(self) -> float:
        return 0.0

    async def abort(self, code: grpc.StatusCode, _details: str, _trailing_metadata: object) -> None:
        self.aborted_with = code


async def test_above_the_limit_calls_are_refused_at_once_while_health_answers(tmp_path: Path) -> None:
    async with (
        open_house(tmp_path, calls_at_once=3, overload_retry_seconds=2) as house,
        grpc.aio.insecure_channel(house.address) as channel,
    ):
        stub, metadata = OtpServiceStub(channel), house.metadata("otp.send")
        house.room.open.clear()
        inside = [stub.SendOtp(send_request(), metadata=metadata) for _ in range(3)]
        await until(lambda: len(house.room.calls) == 3)

        error = await failure_of(stub.SendOtp(send_request(), metadata=metadata, timeout=20))
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        gauge = house.registry.get_sample_value("pulsa_rpc_in_flight")
        house.room.open.set()
        answers = await asyncio.gather(*inside)
        again = await stub.SendOtp(send_request(), metadata=metadata)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error)["ErrorInfo"].reason == "OVERLOADED"
    assert details_of(error)["RetryInfo"].retry_delay.seconds == 2
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert gauge == 3
    assert [*answers, again] == [SendOtpResponse()] * 4


async def test_of_a_crowd_as_many_as_fit_are_served_and_all_others_told_when_to_come_again(tmp_path: Path) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    listening = Listening(address="127.0.0.1:0", calls_waiting=CROWD)
    async with open_house(tmp_path, listening=listening, calls_at_once=LIMIT) as house, AsyncExitStack() as stack:
        channels = [grpc.aio.insecure_channel(house.address, own_connection) for _ in range(4)]
        stubs = [OtpServiceStub(await stack.enter_async_context(channel)) for channel in channels]
        house.room.open.clear()
        metadata = house.metadata("otp.send")
        crowd = [stubs[number % 4].SendOtp(send_request(), metadata=metadata) for number in range(CROWD)]
        health = await health_pb2_grpc.HealthStub(channels[0]).Check(health_pb2.HealthCheckRequest())
        await until(lambda: house.count("SendOtp", "RESOURCE_EXHAUSTED") == CROWD - LIMIT, 60)
        house.room.open.set()
        ends = await asyncio.gather(*crowd, return_exceptions=True)

    failures = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert len(house.room.calls) == ends.count(SendOtpResponse()) == LIMIT
    assert {failure.code() for failure in failures} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all("RetryInfo" in details_of(failure) for failure in failures)


async def test_of_a_crowd_that_nobody_has_looked_at_grpc_ends_what_is_too_much(tmp_path: Path) -> None:
    listening = Listening(address="127.0.0.1:0", calls_waiting=4)
    async with (
        open_house(tmp_path, listening=listening) as house,
        grpc.aio.insecure_channel(house.address) as channel,
    ):
        send, metadata = OtpServiceStub(channel).SendOtp, house.metadata("otp.send")
        crowd = [send(send_request(), metadata=metadata) for _ in range(300)]  # fewer than wait by default
        ends = [await call.code() for call in crowd]

    assert set(ends) == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert len(house.room.calls) == ends.count(grpc.StatusCode.OK)


async def test_open_streams_take_no_room_from_calls(tmp_path: Path) -> None:
    async with (
        open_house(tmp_path, calls_at_once=1, streams_at_once=1) as house,
        grpc.aio.insecure_channel(house.address) as channel,
    ):
        metadata = house.metadata("otp.send", "balance.read")
        house.room.open.clear()
        watch = CreditServiceStub(channel).WatchBalance(WatchBalanceRequest(organization_id="acme"), metadata=metadata)
        await watch.read()
        second = CreditServiceStub(channel).WatchBalance(
            WatchBalanceRequest(organization_id="acme"), metadata=metadata, timeout=20
        )
        refused = await second.code()
        house.room.open.set()
        sent = await OtpServiceStub(channel).SendOtp(send_request(), metadata=metadata)

    assert refused is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sent == SendOtpResponse()


@pytest.mark.parametrize("payload", [b"\xff", b"\x0a\x02\xff\xfe", b"\x0a\x05a", b"\x1a\x04" + b"\x0a\x02\xc3\x28"])
async def test_bytes_that_are_no_request_are_the_callers_fault(
    house: House, channel: grpc.aio.Channel, payload: bytes
) -> None:
    invoke: Any = channel.unary_unary(SEND)

    error = await failure_of(invoke(payload, metadata=house.metadata("otp.send")))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["ErrorInfo"].reason == "INVALID_FIELDS"


async def test_every_violation_reaches_the_caller(house: House, channel: grpc.aio.Channel) -> None:
    request = SendOtpRequest(organization_id="acme", purpose="LOGIN")

    error = await failure_of(OtpServiceStub(channel).SendOtp(request, metadata=house.metadata("otp.send")))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = details_of(error)["BadRequest"].field_violations
    assert [violation.field for violation in violations] == ["request_id", "destination", "purpose"]
    assert house.room.calls == []


async def test_a_domain_error_arrives_with_its_reason(house: House, channel: grpc.aio.Channel) -> None:
    house.room.error = InsufficientCredits(required_credits=3, available_credits=2)

    error = await failure_of(OtpServiceStub(channel).SendOtp(send_request(), metadata=house.metadata("otp.send")))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details_of(error)["ErrorInfo"].metadata["available_credits"] == "2"


async def test_an_unexpected_error_is_logged_once_and_its_text_goes_nowhere(
    house: House, channel: grpc.aio.Channel
) -> None:
    house.room.error = RuntimeError("while texting jane@mail.example her 918273")

    with capture_logs() as lines:
        error = await failure_of(OtpServiceStub(channel).SendOtp(send_request(), metadata=house.metadata("otp.send")))

    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    info = details_of(error)["ErrorInfo"]
    (incident,) = [line for line in lines if line["event"] == "incident"]
    assert incident["incident_id"] == info.metadata["incident_id"]
    assert incident["trace"][0] == "RuntimeError"
    told = f"{lines} {error.trailing_metadata()} {error.debug_error_string()}"
    assert not [secret for secret in ("jane", "918273", "texting") if secret in told]


async def test_what_a_call_said_is_never_logged(house: House, channel: grpc.aio.Channel) -> None:
    stub, token = OtpServiceStub(channel), house.token("otp.send")
    request = send_request()
    metadata = (("authorization", f"Bearer {token}"),)

    with capture_logs() as lines:
        await stub.SendOtp(request, metadata=metadata)
        house.room.error = InsufficientCredits(required_credits=3, available_credits=2)
        await failure_of(stub.SendOtp(request, metadata=metadata))
        request.purpose = "NOT ALLOWED"
        await failure_of(stub.SendOtp(request, metadata=metadata))

    calls = [line for line in lines if line["event"] == "call"]
    assert [line["grpc_code"] for line in calls] == ["OK", "FAILED_PRECONDITION", "INVALID_ARGUMENT"]
    assert {(line["rpc"], line["organization_id"], line["subject"]) for line in calls} == {
        ("SendOtp", "acme", "tester")
    }
    said = (token, request.destination.email, "NOT ALLOWED", request.context, request.fallbacks[0].sms)
    assert not [secret for secret in said if secret in str(lines)]


async def test_calls_are_counted_by_how_they_ended(house: House, channel: grpc.aio.Channel) -> None:
    stub, metadata = OtpServiceStub(channel), house.metadata("otp.send")
    await stub.SendOtp(send_request(), metadata=metadata)
    await failure_of(stub.SendOtp(send_request()))
    house.room.open.clear()
    given_up = stub.SendOtp(send_request(), metadata=metadata)
    await until(lambda: len(house.room.calls) == 2)
    given_up.cancel()
    await until(lambda: house.count("SendOtp", "CANCELLED") == 1)

    assert (house.count("SendOtp", "OK"), house.count("SendOtp", "UNAUTHENTICATED")) == (1, 1)
    assert house.registry.get_sample_value("pulsa_rpc_in_flight") == 0
    assert house.registry.get_sample_value("pulsa_rpc_duration_seconds_count", {"rpc": "SendOtp"}) == 3
