"""`serve --workers`: worker processes on one port when one of them, or their supervisor, stops or is killed."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pulsa.credit.v1.credit_service_pb2 import GetBalanceRequest, WatchBalanceRequest
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub

from tests.faults.load import under_load
from tests.faults.process_deployment import ProcessDeployment, deployed_processes
from tests.faults.processes import Process, free_ports, listens
from tests.waiting import until

WORKERS = 2
CONNECTIONS = 8
"""The kernel distributes them over the workers. It is unlikely that a worker gets none, and no test depends on it."""
NO_FILE = "/there/is/no/such/file"


@pytest.fixture
async def deployment(database_url: str, tmp_path: Path) -> AsyncIterator[ProcessDeployment]:
    """A deployment whose workers all listen, with a metrics page."""
    [metrics_port] = free_ports(1)
    changes = {"PULSA_WORKERS": str(WORKERS), "PULSA_METRICS_LISTEN": f"127.0.0.1:{metrics_port}"}
    async with deployed_processes(database_url, tmp_path, **changes) as running:
        supervisor = running.running["serve"]
        await wait_for_log(supervisor, "listening", WORKERS)
        yield running
        supervisor.signal(signal.SIGTERM)
        await supervisor.wait_for_exit()


def log_lines(process: Process, event: str) -> list[dict[str, Any]]:
    """The lines of its log with this event."""
    lines = [json.loads(line) for line in process.output.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["event"] == event]


async def wait_for_log(process: Process, event: str, times: int) -> None:
    """Return once its log has `times` lines with this event."""
    await until(lambda: len(log_lines(process, event)) == times)


def worker_pids(supervisor: Process) -> dict[int, int]:
    """The PID of each worker's newest process, by worker number."""
    return {line["worker"]: line["pid"] for line in log_lines(supervisor, "worker started")}


@asynccontextmanager
async def connections(deployment: ProcessDeployment) -> AsyncIterator[list[CreditServiceStub]]:
    """Stubs with one connection each."""
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(deployment.settings["PULSA_LISTEN"], options) for _ in range(CONNECTIONS)]
        yield [CreditServiceStub(await stack.enter_async_context(channel)) for channel in channels]


def metadata(deployment: ProcessDeployment) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {deployment.token()}"),)


async def watch(deployment: ProcessDeployment, stub: CreditServiceStub) -> Any:
    """A WatchBalance stream that has sent its first balance."""
    stream: Any = stub.WatchBalance(WatchBalanceRequest(organization_id="acme"), metadata=metadata(deployment))
    await stream.read()
    return stream


async def metric(deployment: ProcessDeployment, name: str, **labels: str) -> float:
    """The sum of the metric's samples with these labels, from the metrics page."""
    async with (
        aiohttp.ClientSession() as browser,
        browser.get(f"http://{deployment.settings['PULSA_METRICS_LISTEN']}/metrics") as page,
    ):
        families = list(text_string_to_metric_families(await page.text()))
    samples: Iterator[Any] = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(float(sample.value) for sample in samples if labels.items() <= sample.labels.items())


async def test_killed_workers_are_replaced_and_no_send_is_lost_or_charged_twice(deployment: ProcessDeployment) -> None:
    supervisor = deployment.running["serve"]
    await deployment.grant(100_000)

    async with under_load(deployment) as load:
        for number in range(WORKERS):
            await load.wait_for_answers(50)
            os.kill(worker_pids(supervisor)[number], signal.SIGKILL)
            await wait_for_log(supervisor, "listening", WORKERS + number + 1)
        await load.wait_for_answers(50)
    await load.assert_charged_once(100_000)
    await deployment.wait_for_empty_outbox()

    deaths = [(line["worker"], line["exit_code"]) for line in log_lines(supervisor, "a worker died")]
    assert deaths == [(number, -signal.SIGKILL) for number in range(WORKERS)]
    mails = deployment.mails()
    assert mails.keys() == {f"{request_id}@mail.example" for request_id in load.answers}
    assert max(mails.values()) <= 1 + len(deaths)


async def test_on_sigterm_every_worker_finishes_accepted_calls_and_streams(deployment: ProcessDeployment) -> None:
    supervisor = deployment.running["serve"]
    control = f"{deployment.stripe.url}/_control/faults"
    fault = {"match": {"method": "POST", "path": "/v1/invoices"}, "fault": "hold_before"}
    async with connections(deployment) as stubs, aiohttp.ClientSession() as browser:
        streams = [await watch(deployment, stub) for stub in stubs]
        async with browser.post(control, json=fault) as answer:
            held = (await answer.json())["id"]
        ordering = asyncio.create_task(deployment.order())
        async with browser.get(f"{control}/{held}/met"):
            pass
        supervisor.signal(signal.SIGTERM)
        ends = [await stream.code() for stream in streams]
        async with browser.post(f"{control}/{held}/release"):
            pass

    assert (await ordering).hosted_invoice_url
    assert await supervisor.wait_for_exit() == 0
    assert ends == [grpc.StatusCode.OK] * CONNECTIONS
    assert len(log_lines(supervisor, "draining")) == WORKERS
    assert log_lines(supervisor, "a worker died") == []


async def test_the_metrics_of_all_workers_are_summed(deployment: ProcessDeployment) -> None:
    supervisor = deployment.running["serve"]

    async def in_flight() -> float:
        return await metric(deployment, "pulsa_rpc_in_flight")

    async with connections(deployment) as stubs:
        for stub in stubs:
            call: Any = stub.GetBalance(GetBalanceRequest(organization_id="acme"), metadata=metadata(deployment))
            await call
        streams = [await watch(deployment, stub) for stub in stubs]
        assert await metric(deployment, "pulsa_rpc_requests_total", rpc="GetBalance", code="OK") == CONNECTIONS
        await until(lambda: equals(in_flight, len(streams)))
        assert await metric(deployment, "pulsa_database_available") == 1
        for pid in worker_pids(supervisor).values():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: equals(in_flight, 0))

    assert await metric(deployment, "pulsa_rpc_requests_total", rpc="GetBalance", code="OK") == CONNECTIONS
    assert await metric(deployment, "pulsa_rpc_duration_seconds_count", rpc="GetBalance") == CONNECTIONS


async def equals(read_value: Any, value: float) -> bool:
    return bool(await read_value() == value)


async def test_a_worker_that_cannot_start_is_restarted_with_a_growing_delay(
    settings: dict[str, str], tmp_path: Path
) -> None:
    changes = {"PULSA_WORKERS": str(WORKERS), "PULSA_PRICING": NO_FILE}
    supervisor = Process("serve", settings | changes, output=tmp_path / "serve.log")

    def deaths() -> list[dict[str, Any]]:
        return [line for line in log_lines(supervisor, "a worker died") if line["worker"] == 0]

    await until(lambda: len(deaths()) == 3)
    supervisor.signal(signal.SIGTERM)

    assert await supervisor.wait_for_exit() == 0
    assert [line["restart_in_seconds"] for line in deaths()] == [0.5, 1, 2]
    assert NO_FILE in supervisor.output


async def test_workers_stop_when_their_supervisor_was_killed(deployment: ProcessDeployment) -> None:
    supervisor = deployment.running["serve"]

    await supervisor.kill()

    await wait_for_log(supervisor, "draining", WORKERS)
    await until(lambda: not listens(int(deployment.settings["PULSA_LISTEN"].rpartition(":")[2])))


async def test_workers_do_not_share_a_port_with_another_program(settings: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other_program:
        address = f"127.0.0.1:{other_program.getsockname()[1]}"
        changes = {"PULSA_WORKERS": str(WORKERS), "PULSA_LISTEN": address}
        supervisor = Process("serve", settings | changes, output=tmp_path / "serve.log")
        code = await supervisor.wait_for_exit()

    assert code == 2
    assert f"PULSA_LISTEN: {address} cannot be listened on" in supervisor.output
