"""`serve --workers`: processes on one port that lose one another, are told to stop, or lose their supervisor."""

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
from tests.faults.processes import Process, free_ports, listens
from tests.faults.site import Site, open_site
from tests.waiting import until

WORKERS = 2
CONNECTIONS = 8
"""The kernel deals them out: hardly ever does a worker get none, and no test fails when one does."""
NO_FILE = "/there/is/no/such/file"


@pytest.fixture
async def site(database_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """Workers that listen, with metrics."""
    [metrics_port] = free_ports(1)
    changes = {"PULSA_WORKERS": str(WORKERS), "PULSA_METRICS_LISTEN": f"127.0.0.1:{metrics_port}"}
    async with open_site(database_url, tmp_path, **changes) as opened:
        supervisor = opened.running["serve"]
        await has_told(supervisor, "listening", WORKERS)
        yield opened
        supervisor.signal(signal.SIGTERM)
        await supervisor.ended()


def told(process: Process, event: str) -> list[dict[str, Any]]:
    """The lines of its log that tell of this."""
    lines = [json.loads(line) for line in process.output.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["event"] == event]


async def has_told(process: Process, event: str, times: int) -> None:
    """Return once it has told of this so often."""
    await until(lambda: len(told(process, event)) == times)


def worker_pids(supervisor: Process) -> dict[int, int]:
    """The newest process of each worker."""
    return {line["worker"]: line["pid"] for line in told(supervisor, "worker started")}


@asynccontextmanager
async def connections(site: Site) -> AsyncIterator[list[CreditServiceStub]]:
    """Callers with a connection each."""
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(site.settings["PULSA_LISTEN"], options) for _ in range(CONNECTIONS)]
        yield [CreditServiceStub(await stack.enter_async_context(channel)) for channel in channels]


def metadata(site: Site) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {site.token()}"),)


async def watch(site: Site, stub: CreditServiceStub) -> Any:
    """A stream that has begun."""
    stream: Any = stub.WatchBalance(WatchBalanceRequest(organization_id="acme"), metadata=metadata(site))
    await stream.read()
    return stream


async def metric(site: Site, name: str, **labels: str) -> float:
    """What the metrics page says; the sum of what bears these labels."""
    async with (
        aiohttp.ClientSession() as browser,
        browser.get(f"http://{site.settings['PULSA_METRICS_LISTEN']}/metrics") as page,
    ):
        families = list(text_string_to_metric_families(await page.text()))
    samples: Iterator[Any] = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(float(sample.value) for sample in samples if labels.items() <= sample.labels.items())


async def test_killed_workers_are_replaced_and_no_send_is_lost_or_charged_twice(site: Site) -> None:
    supervisor = site.running["serve"]
    await site.grant(100_000)

    async with under_load(site) as load:
        for number in range(WORKERS):
            await load.has_answers(50)
            os.kill(worker_pids(supervisor)[number], signal.SIGKILL)
            await has_told(supervisor, "listening", WORKERS + number + 1)
        await load.has_answers(50)
    await load.is_charged_once(100_000)
    await site.is_settled()

    deaths = [(line["worker"], line["exit_code"]) for line in told(supervisor, "a worker died")]
    assert deaths == [(number, -signal.SIGKILL) for number in range(WORKERS)]
    mails = site.mails()
    assert mails.keys() == {f"{request_id}@mail.example" for request_id in load.answers}
    assert max(mails.values()) <= 1 + len(deaths)


async def test_told_to_stop_every_worker_finishes_what_it_accepted(site: Site) -> None:
    supervisor = site.running["serve"]
    control = f"{site.stripe.url}/_control/faults"
    fault = {"match": {"method": "POST", "path": "/v1/invoices"}, "fault": "hold_before"}
    async with connections(site) as stubs, aiohttp.ClientSession() as browser:
        streams = [await watch(site, stub) for stub in stubs]
        async with browser.post(control, json=fault) as answer:
            held = (await answer.json())["id"]
        ordering = asyncio.create_task(site.order())
        async with browser.get(f"{control}/{held}/met"):
            pass
        supervisor.signal(signal.SIGTERM)
        ends = [await stream.code() for stream in streams]
        async with browser.post(f"{control}/{held}/release"):
            pass

    assert (await ordering).hosted_invoice_url
    assert await supervisor.ended() == 0
    assert ends == [grpc.StatusCode.OK] * CONNECTIONS
    assert len(told(supervisor, "draining")) == WORKERS
    assert told(supervisor, "a worker died") == []


async def test_what_the_workers_count_is_added_up(site: Site) -> None:
    supervisor = site.running["serve"]

    async def in_flight() -> float:
        return await metric(site, "pulsa_rpc_in_flight")

    async with connections(site) as stubs:
        for stub in stubs:
            asked: Any = stub.GetBalance(GetBalanceRequest(organization_id="acme"), metadata=metadata(site))
            await asked
        streams = [await watch(site, stub) for stub in stubs]
        assert await metric(site, "pulsa_rpc_requests_total", rpc="GetBalance", code="OK") == CONNECTIONS
        await until(lambda: has(in_flight, len(streams)))
        for pid in worker_pids(supervisor).values():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: has(in_flight, 0))

    assert await metric(site, "pulsa_rpc_requests_total", rpc="GetBalance", code="OK") == CONNECTIONS
    assert await metric(site, "pulsa_rpc_duration_seconds_count", rpc="GetBalance") == CONNECTIONS


async def has(figure: Any, value: float) -> bool:
    return bool(await figure() == value)


async def test_a_worker_that_cannot_start_is_tried_more_and_more_rarely(
    settings: dict[str, str], tmp_path: Path
) -> None:
    changes = {"PULSA_WORKERS": str(WORKERS), "PULSA_PRICING": NO_FILE}
    supervisor = Process("serve", settings | changes, output=tmp_path / "serve.log")

    def deaths() -> list[dict[str, Any]]:
        return [line for line in told(supervisor, "a worker died") if line["worker"] == 0]

    await until(lambda: len(deaths()) == 3)
    supervisor.signal(signal.SIGTERM)

    assert await supervisor.ended() == 0
    assert [line["restart_in_seconds"] for line in deaths()] == [0.5, 1, 2]
    assert NO_FILE in supervisor.output


async def test_workers_end_when_their_supervisor_was_killed(site: Site) -> None:
    supervisor = site.running["serve"]

    await supervisor.kill()

    await has_told(supervisor, "draining", WORKERS)
    await until(lambda: not listens(int(site.settings["PULSA_LISTEN"].rpartition(":")[2])))


async def test_workers_do_not_share_a_port_with_a_stranger(settings: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        changes = {"PULSA_WORKERS": str(WORKERS), "PULSA_LISTEN": address}
        supervisor = Process("serve", settings | changes, output=tmp_path / "serve.log")
        code = await supervisor.ended()

    assert code == 2
    assert f"PULSA_LISTEN: {address} cannot be listened on" in supervisor.output
