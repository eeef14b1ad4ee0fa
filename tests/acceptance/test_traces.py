"""Traces, as a collector gets them from the server by OTLP over HTTP."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.acceptance.collector import Collector, attributes_of, collecting
from tests.acceptance.deployment import Deployment, deployed
from tests.callers import RPCS
from tests.waiting import until

SENDS, GUESSES = "pulsa.otp.v1.OtpService/SendOtp", "pulsa.otp.v1.OtpService/VerifyOtp"
PARENT = "00f067aa0ba902b7"
ORDER: dict[str, Any] = {"credits": 1000, "currency_code": "IDR", "billing_email": "billing@mail.example"}


@dataclass
class Traced:
    """A deployment whose spans a collector gets."""

    pulsa: Deployment
    collector: Collector

    async def call(self, rpc: str, *, trace_id: str, flags: str = "01", **fields: Any) -> Any:
        """As Caller.call, with a W3C traceparent."""
        method = RPCS[rpc]
        request = GetMessageClass(method.input_type)(organization_id="acme", **fields)
        start: Any = self.pulsa.channel.unary_unary(
            f"/{method.containing_service.full_name}/{rpc}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        token = ("authorization", f"Bearer {self.pulsa.token()}")
        return await start(request, metadata=(token, ("traceparent", f"00-{trace_id}-{PARENT}-{flags}")), timeout=30)

    async def send(self, email: str, *, trace_id: str, flags: str = "01") -> Any:
        """SendOtp."""
        fields: dict[str, Any] = {"request_id": str(uuid4()), "destination": {"email": email}, "purpose": "login"}
        return await self.call("SendOtp", trace_id=trace_id, flags=flags, **fields)

    async def named(self, name: str, trace_id: str) -> Span:
        """The one span of this name in the trace, once it is exported."""

        def found() -> list[Span]:
            return [span for span in self.collector.of(trace_id) if span.name == name]

        await until(found)
        (span,) = found()
        return span

    async def batch(self, name: str, trace_id: str) -> Span:
        """The one batch of this name with a link to the trace, once it is exported."""

        def found() -> list[Span]:
            return [span for span in self.collector.linked_to(trace_id) if span.name == name]

        await until(found)
        (span,) = found()
        return span


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are exported every 0.05 s instead of every second."""
    monkeypatch.setattr("server.traces._EXPORT_SECONDS", 0.05)


@pytest.fixture
async def traced(database_url: str, tmp_path: Path) -> AsyncIterator[Traced]:
    async with collecting() as collector:
        traces = {"endpoint": collector.url, "ratio": 0, "headers": "x-token=secret, x-tenant=a=b"}
        async with deployed(database_url, tmp_path, traces=traces) as pulsa:
            await pulsa.grant(1000)
            yield Traced(pulsa, collector)


def new_trace_id() -> str:
    return uuid4().hex


def are_linked(span: Span, other: Span) -> bool:
    return any((link.trace_id, link.span_id) == (other.trace_id, other.span_id) for link in span.links)


async def test_a_send_is_traced_from_its_caller_to_its_provider(traced: Traced) -> None:
    trace_id = new_trace_id()

    await traced.send("jane@mail.example", trace_id=trace_id)

    rpc = await traced.named(SENDS, trace_id)
    batch, outcomes = await traced.batch("batch of sends", trace_id), await traced.batch("batch of outcomes", trace_id)
    delivery, provider = await traced.named("delivery", trace_id), await traced.named("provider console", trace_id)
    databases = {span.parent_span_id for span in traced.collector.of(trace_id) if span.name == "database"}
    assert rpc.parent_span_id.hex() == PARENT
    assert traced.collector.resource == {"service.name": "pulsa", "deployment.environment.name": "test"}
    assert (traced.collector.headers["x-token"], traced.collector.headers["x-tenant"]) == ("secret", "a=b")
    assert attributes_of(rpc) == {"rpc.system.name": "grpc", "rpc.method": SENDS, "rpc.response.status_code": "OK"}
    assert are_linked(batch, rpc)
    assert are_linked(rpc, batch)
    assert are_linked(outcomes, rpc)
    assert {batch.span_id, outcomes.span_id} <= databases
    assert (delivery.parent_span_id, provider.parent_span_id) == (rpc.span_id, delivery.span_id)
    assert attributes_of(provider)["pulsa.outcome"] == attributes_of(delivery)["pulsa.outcome"] == "ACCEPTED"


async def test_a_batch_is_linked_to_each_sampled_call_that_shared_it(traced: Traced) -> None:
    shared: list[Span] = []
    while not shared:  # the first call of each round goes alone
        trace_ids = [new_trace_id() for _ in range(20)]
        names = [f"{trace_id}@mail.example" for trace_id in trace_ids]
        sampled = {trace_id: f"{number % 2:02}" for number, trace_id in enumerate(trace_ids)}
        await asyncio.gather(
            *(
                traced.send(name, trace_id=each, flags=sampled[each])
                for name, each in zip(names, trace_ids, strict=True)
            )
        )
        for trace_id in trace_ids[1::2]:
            rpc, batch = await traced.named(SENDS, trace_id), await traced.batch("batch of sends", trace_id)
            assert are_linked(rpc, batch)
            assert are_linked(batch, rpc)
            shared += [batch] if len(batch.links) > 1 else []
        assert [span for trace_id in trace_ids[::2] for span in traced.collector.of(trace_id)] == []

    assert int(attributes_of(shared[0])["pulsa.batch.size"]) >= len(shared[0].links)


async def test_a_trace_has_only_what_its_own_calls_needed(traced: Traced) -> None:
    trace_id = new_trace_id()
    names = [f"{number}@mail.example" for number in range(30)]
    await traced.pulsa.send(email="first@mail.example")  # on Citus the first call asks for the organization's shard

    # A sampled call that goes first starts a task that goes on with the others' batch; the delivery of one among the
    # others is queued with theirs.
    for sampled, wave in ((names[0], names[:15]), (names[22], names[15:])):
        await asyncio.gather(
            *(
                traced.send(name, trace_id=trace_id) if name == sampled else traced.pulsa.send(email=name)
                for name in wave
            )
        )
    for name in names:
        await traced.pulsa.code_sent_to(name)
    await traced.call("GetPricing", trace_id=trace_id)

    await traced.named("pulsa.credit.v1.CreditService/GetPricing", trace_id)
    spans = traced.collector.of(trace_id)
    calls = {span.span_id for span in spans if span.name == SENDS}
    assert [span.name for span in spans].count("provider console") == len(calls) == 2
    assert [span for span in spans if span.name == "database" and span.parent_span_id in calls] == []


async def test_a_top_up_is_traced_to_stripe(traced: Traced) -> None:
    trace_id = new_trace_id()

    await traced.call("CreateTopUp", trace_id=trace_id, request_id=str(uuid4()), **ORDER)

    for step in ("create_customer", "create_invoice", "finalize"):
        await traced.named(f"stripe {step}", trace_id)


async def test_no_span_tells_a_destination_a_code_or_the_text_of_an_error(traced: Traced) -> None:
    trace_id, secrets = new_trace_id(), {"jane.doe", "mail.example", "6281234567", "billing", "wrong-context"}

    sent = await traced.send("jane.doe@mail.example", trace_id=trace_id)
    code = await traced.pulsa.code_sent_to("jane.doe@mail.example")
    guess = {"request_id": str(uuid4()), "otp_id": sent.otp.otp_id, "context": "wrong-context"}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await traced.call("VerifyOtp", trace_id=trace_id, code=code, **guess)
    fields: dict[str, Any] = {
        "request_id": str(uuid4()),
        "destination": {"sms": "+62812345678901234"},
        "purpose": "login",
    }
    with pytest.raises(grpc.aio.AioRpcError) as invalid:
        await traced.call("SendOtp", trace_id=trace_id, **fields)
    await traced.call("CreateTopUp", trace_id=trace_id, request_id=str(uuid4()), **ORDER)

    guessed = await traced.named(GUESSES, trace_id)
    await traced.named("pulsa.credit.v1.CreditService/CreateTopUp", trace_id)
    await traced.batch("batch of outcomes", trace_id)
    exported = b"".join(traced.collector.bodies).decode(errors="replace")
    secrets |= {code, str(refused.value.details()), str(invalid.value.details())}
    assert [secret for secret in secrets if secret in exported] == []
    assert attributes_of(guessed)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert guessed.status.code == Status.STATUS_CODE_UNSET


async def test_a_wrong_traceparent_is_none(database_url: str, tmp_path: Path) -> None:
    trace_id = new_trace_id()
    async with (
        collecting() as collector,
        deployed(database_url, tmp_path, traces={"endpoint": collector.url, "ratio": 1}) as pulsa,
    ):
        traced = Traced(pulsa, collector)
        for malformed in (trace_id.upper(), trace_id[1:], "0" * 32):
            await traced.call("GetPricing", trace_id=malformed)
        await traced.call("GetPricing", trace_id=trace_id, flags="00")
        await until(lambda: len(collector.spans) >= 3)

    assert [span.parent_span_id for span in collector.spans] == [b"", b"", b""]
    assert collector.of(trace_id) == []


async def test_sends_do_not_wait_for_a_collector_that_is_away(database_url: str, tmp_path: Path) -> None:
    async with collecting() as collector:
        pass
    async with deployed(database_url, tmp_path, traces={"endpoint": collector.url, "ratio": 1}) as pulsa:
        await pulsa.grant(10)
        await pulsa.send(email="jane@mail.example")

        assert await pulsa.code_sent_to("jane@mail.example")


def test_a_server_without_traces_imports_no_opentelemetry() -> None:
    find = "import server.composition, sys; print([name for name in sys.modules if name.startswith('opentelemetry')])"

    assert subprocess.check_output([sys.executable, "-c", find], text=True) == "[]\n"  # noqa: S603
