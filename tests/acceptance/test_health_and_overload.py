"""Health, reflection and the limit of concurrent calls."""

import asyncio
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped] # has no types
from pulsa.errors import PulsaError

from tests.acceptance.deployment import Deployment, deployed
from tests.callers import SERVICES, refusal_of


async def is_serving(pulsa: Deployment, service: str = "") -> bool:
    answer = await health_pb2_grpc.HealthStub(pulsa.channel).Check(health_pb2.HealthCheckRequest(service=service))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_health_needs_no_token(pulsa: Deployment) -> None:
    assert all([await is_serving(pulsa, name) for name in ("", *(each.full_name for each in SERVICES))])


async def test_reflection_describes_every_service_and_its_messages(pulsa: Deployment) -> None:
    ask = reflection_pb2.ServerReflectionRequest
    symbols = [service.full_name for service in SERVICES]
    questions = [ask(list_services=""), *(ask(file_containing_symbol=symbol) for symbol in symbols)]
    talk = reflection_pb2_grpc.ServerReflectionStub(pulsa.channel).ServerReflectionInfo(iter(questions))

    listed, *files = [answer async for answer in talk]

    assert {service.name for service in listed.list_services_response.service} >= set(symbols)
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in files)


async def balance_once_a_slot_is_free(pulsa: Deployment) -> int:
    """The webhook sidecar calls the same server, and one of its calls may occupy the only slot."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await pulsa.balance()
            except PulsaError as error:
                if error.reason != "OVERLOADED":
                    raise
            await asyncio.sleep(0.01)


async def test_above_the_limit_of_concurrent_calls_the_server_answers_when_to_retry(
    database_url: str, tmp_path: Path
) -> None:
    async with deployed(database_url, tmp_path, limit={"calls_at_once": 1}) as pulsa:
        match = {"method": "POST", "path": "/v1/invoices"}
        fault = await pulsa.control("POST", "faults", match=match, fault="hold_before")
        ordering = asyncio.create_task(pulsa.order())
        await pulsa.control("GET", f"faults/{fault['id']}/met")

        refused = await refusal_of(pulsa.call("GetBalance"))
        serving = await is_serving(pulsa)
        await pulsa.control("POST", f"faults/{fault['id']}/release")
        top_up = await ordering

        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refused.retry_after_seconds == 1.0
        assert serving
        assert top_up.hosted_invoice_url
        assert await balance_once_a_slot_is_free(pulsa) == 0
