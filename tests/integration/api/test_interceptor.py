"""The interceptor in a real server: limits, deadlines, malformed requests, errors, metrics and the access log."""

import asyncio
import gc
import math
import time
from collections.abc import AsyncIterator
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
from pulsa.credit.v1.credit_service_pb2 import WatchBalanceRequest, WatchBalanceResponse
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, SendOtpResponse, VerifyOtpRequest
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub
from structlog.testing import capture_logs

from server.api.auth import TokenVerifier, mint
from server.api.interceptor import Interceptor
from server.api.permissions import ALL_PERMISSIONS
from server.api.server import ListenOptions
from server.cli.token import development_key
from server.errors import InsufficientCredits, InvalidFields, Overloaded, TopUpAlreadyOpen
from tests.integration.api.stub_server import SERVICES, StubBehavior, StubServer, run_stub_server, stub_servicer
from tests.valid_requests import valid_request
from tests.waiting import until

SEND = "/pulsa.otp.v1.OtpService/SendOtp"
LIMIT, SENDS, BURST = 8, 7, 1500  # one place in 8 is not for sends
"""Calls at once, and calls of a burst: more than may be queued by default, from where on gRPC cancels some."""


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


async def error_of(call: grpc.aio.UnaryUnaryCall[SendOtpRequest, SendOtpResponse]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_servicer_gets_the_caller_and_the_deadline(stub_server: StubServer, channel: grpc.aio.Channel) -> None:
    stub = OtpServiceStub(channel)

    await stub.SendOtp(send_request(), metadata=stub_server.metadata("otp.send"))
    await stub.SendOtp(send_request(), metadata=stub_server.metadata("otp.send"), timeout=60)

    unlimited, limited = stub_server.behavior.calls
    assert (unlimited.caller.subject, unlimited.caller.organization_id) == ("tester", "acme")
    assert unlimited.deadline == math.inf
    assert 30 < limited.deadline - time.monotonic() < 61


async def test_a_call_whose_deadline_passed_in_transit_does_not_reach_the_servicer(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> None:
    await OtpServiceStub(channel).SendOtp(send_request(), metadata=stub_server.metadata("otp.send"))
    # This call blocks the event loop, which the server shares: the server reads it after its deadline.
    with grpc.insecure_channel(stub_server.address) as blocking, pytest.raises(grpc.RpcError) as caught:
        OtpServiceStub(blocking).SendOtp(send_request(), metadata=stub_server.metadata("otp.send"), timeout=0.3)
    await OtpServiceStub(channel).SendOtp(send_request(), metadata=stub_server.metadata("otp.send"))

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(stub_server.behavior.calls) == 2


async def test_a_call_whose_deadline_passed_before_the_interceptor_does_not_reach_the_servicer(tmp_path: Path) -> None:
    """GRPC itself ends nearly all of these; the interceptor refuses one that gRPC has just read."""
    key, behavior = development_key(tmp_path), StubBehavior()
    interceptor = Interceptor(TokenVerifier(key.public_key_file), registry=CollectorRegistry())
    context = LateContext()
    handler: Any = interceptor.handler(SERVICES[1], stub_servicer(SERVICES[1], behavior))

    await handler.service(context).unary_unary(send_request().SerializeToString(), context)

    assert context.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert behavior.calls == []


class LateContext:
    """The context of a call whose deadline has passed."""

    method = SEND
    invocation_metadata: tuple[tuple[str, str], ...] = ()
    code: grpc.StatusCode | None = None

    def time_remaining(self) -> float:
        return 0.0

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: object) -> None:
        self.trailing_metadata = trailing_metadata


async def test_calls_above_the_limit_are_refused_at_once_while_health_answers(tmp_path: Path) -> None:
    async with (
        run_stub_server(tmp_path, calls_at_once=3, overload_retry_seconds=2) as stub_server,
        grpc.aio.insecure_channel(stub_server.address) as channel,
    ):
        stub, metadata = OtpServiceStub(channel), stub_server.metadata("otp.send")
        stub_server.behavior.may_answer.clear()
        running = [stub.SendOtp(send_request(), metadata=metadata) for _ in range(3)]
        await until(lambda: len(stub_server.behavior.calls) == 3)

        error = await error_of(stub.SendOtp(send_request(), metadata=metadata, timeout=20))
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        gauge = stub_server.registry.get_sample_value("pulsa_rpc_in_flight")
        stub_server.behavior.may_answer.set()
        answers = await asyncio.gather(*running)
        again = await stub.SendOtp(send_request(), metadata=metadata)

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error)["ErrorInfo"].reason == "OVERLOADED"
    assert details_of(error)["RetryInfo"].retry_delay.seconds == 2
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert gauge == 3
    assert [*answers, again] == [SendOtpResponse()] * 4


async def test_of_a_burst_calls_up_to_the_limit_are_served_and_all_others_get_retry_info(tmp_path: Path) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    listening = ListenOptions(address="127.0.0.1:0", calls_waiting=BURST)
    async with (
        run_stub_server(tmp_path, listening=listening, calls_at_once=LIMIT) as stub_server,
        AsyncExitStack() as stack,
    ):
        channels = [grpc.aio.insecure_channel(stub_server.address, own_connection) for _ in range(4)]
        stubs = [OtpServiceStub(await stack.enter_async_context(channel)) for channel in channels]
        stub_server.behavior.may_answer.clear()
        metadata = stub_server.metadata("otp.send")
        burst = [stubs[number % 4].SendOtp(send_request(), metadata=metadata) for number in range(BURST)]
        health = await health_pb2_grpc.HealthStub(channels[0]).Check(health_pb2.HealthCheckRequest())
        await until(lambda: stub_server.count("SendOtp", "RESOURCE_EXHAUSTED") == BURST - SENDS)
        stub_server.behavior.may_answer.set()
        ends = await asyncio.gather(*burst, return_exceptions=True)

    failures = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert len(stub_server.behavior.calls) == ends.count(SendOtpResponse()) == SENDS
    assert {failure.code() for failure in failures} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all("RetryInfo" in details_of(failure) for failure in failures)


async def test_one_organization_leaves_places_to_others_and_sends_leave_one_to_guesses(tmp_path: Path) -> None:
    async with (
        run_stub_server(tmp_path, calls_at_once=16) as stub_server,
        grpc.aio.insecure_channel(stub_server.address) as channel,
    ):
        stub_server.behavior.may_answer.clear()
        metadata = stub_server.metadata("otp.send", "otp.verify", organization_id="*")
        stub = OtpServiceStub(channel)

        async def is_refused(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> bool:
            count = len(stub_server.behavior.calls)
            await until(lambda: call.done() or len(stub_server.behavior.calls) > count)
            return call.done()

        def send(organization_id: str) -> grpc.aio.UnaryUnaryCall[Any, Any]:
            request = send_request()
            request.organization_id = organization_id
            return stub.SendOtp(request, metadata=metadata, timeout=20)

        of_one = [await is_refused(send("acme")) for _ in range(16)]
        of_another = await is_refused(send("other"))
        of_third = await is_refused(send("third"))
        guess: Any = valid_request(VerifyOtpRequest.DESCRIPTOR)
        guess.organization_id = "other"
        of_guess = await is_refused(stub.VerifyOtp(guess, metadata=metadata, timeout=20))
        stub_server.behavior.may_answer.set()

    assert of_one == [False] * 13 + [True] * 3  # 4/5 of 16 places
    assert (of_another, of_third, of_guess) == (False, True, False)  # 14 of 16 places are for sends


async def test_one_organization_leaves_streams_to_others(tmp_path: Path) -> None:
    async with (
        run_stub_server(tmp_path, streams_at_once=5) as stub_server,
        grpc.aio.insecure_channel(stub_server.address) as channel,
    ):
        stub_server.behavior.may_answer.clear()
        metadata = stub_server.metadata("balance.read", organization_id="*")
        stub = CreditServiceStub(channel)

        async def is_open(organization_id: str) -> bool:
            request = WatchBalanceRequest(organization_id=organization_id)
            watch = stub.WatchBalance(request, metadata=metadata, timeout=20)
            (first,) = await asyncio.gather(watch.read(), return_exceptions=True)
            return first == WatchBalanceResponse()

        opened = [await is_open(name) for name in ("acme",) * 5 + ("other",)]
        stub_server.behavior.may_answer.set()

    assert opened == [True] * 4 + [False, True]


async def test_grpc_cancels_queued_calls_above_the_bound(tmp_path: Path) -> None:
    listening = ListenOptions(address="127.0.0.1:0", calls_waiting=4)
    async with (
        run_stub_server(tmp_path, listening=listening) as stub_server,
        grpc.aio.insecure_channel(stub_server.address) as channel,
    ):
        send, metadata = OtpServiceStub(channel).SendOtp, stub_server.metadata("otp.send")
        burst = [send(send_request(), metadata=metadata) for _ in range(300)]  # fewer than may be queued by default
        ends = [await call.code() for call in burst]

    assert set(ends) == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert len(stub_server.behavior.calls) == ends.count(grpc.StatusCode.OK)


async def test_one_connection_does_not_have_the_queued_calls_of_another_cancelled(tmp_path: Path) -> None:
    """Before their tokens are known, calls share only the queue."""
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    listening = ListenOptions(address="127.0.0.1:0", calls_waiting=40, calls_per_connection=30)
    async with (
        run_stub_server(tmp_path, listening=listening) as stub_server,
        grpc.aio.insecure_channel(stub_server.address, own_connection) as greedy,
        grpc.aio.insecure_channel(stub_server.address, own_connection) as modest,
    ):
        metadata = stub_server.metadata("otp.send")
        await asyncio.gather(greedy.channel_ready(), modest.channel_ready())
        ends, floods = [], []
        for _ in range(10):
            floods += [OtpServiceStub(greedy).SendOtp(send_request(), timeout=60) for _ in range(200)]
            ends.append(await OtpServiceStub(modest).SendOtp(send_request(), metadata=metadata, timeout=60).code())
        for flood in floods:
            flood.cancel()

    assert ends == [grpc.StatusCode.OK] * 10


async def test_a_connection_has_a_limit_of_calls_and_streams_whose_bodies_are_not_there_yet(tmp_path: Path) -> None:
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    listening = ListenOptions(address="127.0.0.1:0", calls_per_connection=3)
    async with (
        run_stub_server(tmp_path, listening=listening) as stub_server,
        grpc.aio.insecure_channel(stub_server.address, own_connection) as greedy,
        grpc.aio.insecure_channel(stub_server.address, own_connection) as modest,
    ):
        metadata, body_may_come = stub_server.metadata("otp.send"), asyncio.Event()

        async def late_body() -> AsyncIterator[bytes]:
            await body_may_come.wait()
            yield send_request().SerializeToString()

        await greedy.channel_ready()
        invoke: Any = greedy.stream_unary(SEND)
        begun = [invoke(late_body(), metadata=metadata, timeout=60) for _ in range(3)]
        await asyncio.gather(*(call.wait_for_connection() for call in begun))
        further = await OtpServiceStub(greedy).SendOtp(send_request(), metadata=metadata, timeout=2).code()
        of_another = await OtpServiceStub(modest).SendOtp(send_request(), metadata=metadata, timeout=60).code()
        body_may_come.set()
        ends = [await call.code() for call in begun]

    assert (further, of_another) == (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK)
    assert ends == [grpc.StatusCode.OK] * 3


async def test_open_streams_do_not_count_against_the_limit_of_calls(tmp_path: Path) -> None:
    async with (
        run_stub_server(tmp_path, calls_at_once=1, streams_at_once=1) as stub_server,
        grpc.aio.insecure_channel(stub_server.address) as channel,
    ):
        metadata = stub_server.metadata("otp.send", "balance.read")
        stub_server.behavior.may_answer.clear()
        watch = CreditServiceStub(channel).WatchBalance(WatchBalanceRequest(organization_id="acme"), metadata=metadata)
        await watch.read()
        second = CreditServiceStub(channel).WatchBalance(
            WatchBalanceRequest(organization_id="acme"), metadata=metadata, timeout=20
        )
        refused = await second.code()
        stub_server.behavior.may_answer.set()
        sent = await OtpServiceStub(channel).SendOtp(send_request(), metadata=metadata)

    assert refused is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sent == SendOtpResponse()


@pytest.mark.parametrize("payload", [b"\xff", b"\x0a\x02\xff\xfe", b"\x0a\x05a", b"\x1a\x04" + b"\x0a\x02\xc3\x28"])
async def test_a_payload_that_is_no_request_is_an_invalid_argument(
    stub_server: StubServer, channel: grpc.aio.Channel, payload: bytes
) -> None:
    invoke: Any = channel.unary_unary(SEND)

    error = await error_of(invoke(payload, metadata=stub_server.metadata("otp.send")))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)["ErrorInfo"].reason == "INVALID_FIELDS"


async def test_every_violation_reaches_the_caller(stub_server: StubServer, channel: grpc.aio.Channel) -> None:
    request = SendOtpRequest(organization_id="acme", purpose="LOGIN")

    error = await error_of(OtpServiceStub(channel).SendOtp(request, metadata=stub_server.metadata("otp.send")))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = details_of(error)["BadRequest"].field_violations
    assert [violation.field for violation in violations] == ["request_id", "destination", "purpose"]
    assert stub_server.behavior.calls == []


async def test_a_domain_error_arrives_with_its_reason(stub_server: StubServer, channel: grpc.aio.Channel) -> None:
    stub_server.behavior.error = InsufficientCredits(required_credits=3, available_credits=2)

    error = await error_of(OtpServiceStub(channel).SendOtp(send_request(), metadata=stub_server.metadata("otp.send")))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details_of(error)["ErrorInfo"].metadata["available_credits"] == "2"


async def test_an_error_with_texts_that_are_not_ascii_arrives_whole(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> None:
    url = "https://example.com/é…"
    stub_server.behavior.error = TopUpAlreadyOpen(top_up_id="é", hosted_invoice_url=url)

    error = await error_of(OtpServiceStub(channel).SendOtp(send_request(), metadata=stub_server.metadata("otp.send")))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert dict(details_of(error)["ErrorInfo"].metadata) == {"top_up_id": "é", "hosted_invoice_url": url}


async def test_an_empty_request_names_no_organization_and_is_refused(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> None:
    metadata = stub_server.metadata(*ALL_PERMISSIONS, organization_id="*")
    for service in SERVICES:
        for rpc in service.methods:
            if "organization_id" not in rpc.input_type.fields_by_name or rpc.server_streaming:
                continue
            invoke: Any = channel.unary_unary(f"/{service.full_name}/{rpc.name}")

            error = await error_of(invoke(b"", metadata=metadata))

            violations = details_of(error)["BadRequest"].field_violations
            assert "organization_id" in [violation.field for violation in violations], rpc.name
    assert stub_server.behavior.calls == []


async def test_an_unexpected_error_is_logged_once_and_its_text_neither_logged_nor_sent(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> None:
    stub_server.behavior.error = RuntimeError("while texting jane@mail.example her 918273")

    with capture_logs() as lines:
        error = await error_of(
            OtpServiceStub(channel).SendOtp(send_request(), metadata=stub_server.metadata("otp.send"))
        )

    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    info = details_of(error)["ErrorInfo"]
    (incident,) = [line for line in lines if line["event"] == "incident"]
    assert incident["incident_id"] == info.metadata["incident_id"]
    assert incident["trace"][0] == "RuntimeError"
    output = f"{lines} {error.trailing_metadata()} {error.debug_error_string()}"
    assert not [secret for secret in ("jane", "918273", "texting") if secret in output]


async def test_an_organization_id_that_breaks_its_rule_is_logged_short_and_without_control_characters(
    tmp_path: Path,
) -> None:
    """An rpc that validates itself has its request logged when it refuses it."""
    key, behavior = development_key(tmp_path), StubBehavior(error=InvalidFields(violations=()))
    servicer: Any = stub_servicer(SERVICES[1], behavior)
    servicer.validates_itself = ["SendOtp"]
    interceptor = Interceptor(TokenVerifier(key.public_key_file), registry=CollectorRegistry())
    token = mint(
        key.private_key(), subject="tester", organization_id="*", permissions=["otp.send"], lifetime_seconds=60
    )
    context = PunctualContext((("authorization", f"Bearer {token}"),))
    request = send_request()
    request.organization_id = "acme\nfake line\x1b[2J\u2028" + "x" * 100_000
    handler: Any = interceptor.handler(SERVICES[1], servicer)

    with capture_logs() as lines:
        await handler.service(context).unary_unary(request.SerializeToString(), context)

    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    (call,) = [line for line in lines if line["event"] == "call"]
    assert call["organization_id"] == "acme\ufffdfake line\ufffd[2J\ufffd" + "x" * 45
    assert call["subject"] == "tester"


class PunctualContext(LateContext):
    """The context of a call with this metadata and without a deadline."""

    def __init__(self, invocation_metadata: tuple[tuple[str, str], ...]) -> None:
        self.invocation_metadata = invocation_metadata

    def time_remaining(self) -> float:
        return math.inf


async def test_the_contents_of_a_call_are_never_logged(stub_server: StubServer, channel: grpc.aio.Channel) -> None:
    stub, token = OtpServiceStub(channel), stub_server.token("otp.send")
    request = send_request()
    metadata = (("authorization", f"Bearer {token}"),)

    with capture_logs() as lines:
        await stub.SendOtp(request, metadata=metadata)
        stub_server.behavior.error = InsufficientCredits(required_credits=3, available_credits=2)
        await error_of(stub.SendOtp(request, metadata=metadata))
        request.purpose = "NOT ALLOWED"
        await error_of(stub.SendOtp(request, metadata=metadata))

    calls = [line for line in lines if line["event"] == "call"]
    assert [line["grpc_code"] for line in calls] == ["OK", "FAILED_PRECONDITION", "INVALID_ARGUMENT"]
    assert {(line["rpc"], line["organization_id"], line["subject"]) for line in calls} == {
        ("SendOtp", "acme", "tester")
    }
    contents = (token, request.destination.email, "NOT ALLOWED", request.context, request.fallbacks[0].destination.sms)
    assert not [secret for secret in contents if secret in str(lines)]


async def test_a_refused_call_leaves_nothing_to_the_garbage_collector(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> None:
    """As `context.abort` does: its error and the call hold each other."""
    request, metadata = send_request(), stub_server.metadata("otp.send")
    request.purpose = "NOT ALLOWED"
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            await error_of(OtpServiceStub(channel).SendOtp(request, metadata=metadata))
        contexts = [each for each in gc.get_objects() if type(each).__name__ == "_ServicerContext"]
    finally:
        gc.enable()
    assert len(contexts) < 5


async def test_what_an_rpc_refuses_for_lack_of_room_is_counted_too(
    stub_server: StubServer, channel: grpc.aio.Channel
) -> None:
    stub_server.behavior.error = Overloaded(retry_after_seconds=1)
    with capture_logs() as lines:
        await error_of(OtpServiceStub(channel).SendOtp(send_request(), metadata=stub_server.metadata("otp.send")))

    assert stub_server.registry.get_sample_value("pulsa_rpc_overloaded_total") == 1
    assert [line["calls_refused"] for line in lines if line["event"] == "overloaded"] == [1]


async def test_calls_are_counted_by_status_code(stub_server: StubServer, channel: grpc.aio.Channel) -> None:
    stub, metadata = OtpServiceStub(channel), stub_server.metadata("otp.send")
    await stub.SendOtp(send_request(), metadata=metadata)
    await error_of(stub.SendOtp(send_request()))
    stub_server.behavior.may_answer.clear()
    canceled = stub.SendOtp(send_request(), metadata=metadata)
    await until(lambda: len(stub_server.behavior.calls) == 2)
    canceled.cancel()
    await until(lambda: stub_server.count("SendOtp", "CANCELLED") == 1)
    late = await error_of(stub.SendOtp(send_request(), metadata=metadata, timeout=1))
    await until(lambda: stub_server.count("SendOtp", "DEADLINE_EXCEEDED") == 1)

    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (stub_server.count("SendOtp", "OK"), stub_server.count("SendOtp", "UNAUTHENTICATED")) == (1, 1)
    assert stub_server.registry.get_sample_value("pulsa_rpc_in_flight") == 0
    assert stub_server.registry.get_sample_value("pulsa_rpc_duration_seconds_count", {"rpc": "SendOtp"}) == 4
