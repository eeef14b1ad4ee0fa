"""`make test-callers`: gRPC stacks directly, and through proxies as docs/operations.md sets them. Not in `make test`.

Each stack has a program with three modes. `calls` makes a unary call, gets an error with its details, and sends a
message of exactly 1 MiB. `send` sends OTPs until the end of its standard input, each with a request_id and repeated
until it is answered, and prints a line for each. `watch` prints `open` and then the credits of a balance stream, which
it opens again when it ends. A cell whose tools are missing is skipped, and says which.

The streams of all cells are silent for IDLE_SECONDS, 5 by default: `make test-callers IDLE_SECONDS=600`.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from itertools import product
from pathlib import Path
from typing import Final

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.databases import Databases
from tests.faults.process_deployment import ProcessDeployment, deployed_processes
from tests.faults.processes import CHECKOUT, free_ports
from tests.stacks.outages import CREDITS, calling, cut, failover, overload, restart, restarted
from tests.stacks.programs import PROGRAMS, Programs
from tests.stacks.proxies import proxy
from tests.stacks.stack import running

IDLE_SECONDS: Final = float(os.environ.get("IDLE_SECONDS") or 5)
WAYS: Final = ("direct", "nginx", "haproxy")
ANSWERS: Final = [
    "unary acme",
    "error INVALID_FIELDS request_id,destination,purpose",
    "large INVALID_FIELDS request_id,destination,purpose,context",
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
async def pulsa(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessDeployment]:
    with databases.new() as url:
        metrics = f"127.0.0.1:{free_ports(1)[0]}"
        async with deployed_processes(
            url, tmp_path_factory.mktemp("server"), PULSA_METRICS_LISTEN=metrics
        ) as deployment:
            yield deployment


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stack", PROGRAMS)
async def test_a_stack_calls_and_gets_the_details_of_errors(
    pulsa: ProcessDeployment, programs: Programs, stack: str, way: str, tmp_path: Path
) -> None:
    async with (
        proxy(way, pulsa.settings["PULSA_LISTEN"], tmp_path) as address,
        running(programs, stack, address=address, token=pulsa.token(), organization="acme", mode="calls") as calls,
    ):
        assert await calls.ended() == ANSWERS


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stack", PROGRAMS)
async def test_a_stack_goes_on_when_the_server_is_restarted_and_when_it_is_killed(
    database_url: str, programs: Programs, stack: str, way: str, tmp_path: Path
) -> None:
    async with (
        deployed_processes(database_url, tmp_path) as pulsa,
        proxy(way, pulsa.settings["PULSA_LISTEN"], tmp_path) as address,
        calling(pulsa, programs, [stack], address=address, callers=1) as callers,
    ):
        await restarted(pulsa, callers, sends=3)


@pytest.mark.parametrize("outage", [restart, overload, cut])
async def test_the_typescript_client_loses_and_doubles_no_send(
    outage: Callable[..., Awaitable[None]], database_url: str, programs: Programs, tmp_path: Path
) -> None:
    await outage(programs, ["connect-node"], database_url, tmp_path)


async def test_the_typescript_client_loses_and_doubles_no_send_in_a_failover(
    programs: Programs, tmp_path: Path
) -> None:
    await failover(programs, ["connect-node"], tmp_path)


@pytest.mark.parametrize("language", ["Ruby", "Java"])
async def test_the_example_of_the_documents_does_what_it_says(
    pulsa: ProcessDeployment, programs: Programs, language: str, tmp_path: Path
) -> None:
    found = re.search(rf"```{language.lower()}\n(.*?)```", (CHECKOUT / "docs" / "api.md").read_text(), re.DOTALL)
    assert found
    text = found[1].replace("127.0.0.1:50051", pulsa.settings["PULSA_LISTEN"]).replace('"demo"', f'"{language}"')
    await pulsa.grant(1, language)
    program = await asyncio.create_subprocess_exec(
        *programs.example(language, text, tmp_path),
        env=os.environ | {"TOKEN": pulsa.token(organization_id=language)},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await program.communicate()
    assert printed.decode() == "WRONG_CODE 4\n"
    assert await pulsa.balance(language) == 0


async def test_a_silent_stream_stays_open_in_each_cell(
    pulsa: ProcessDeployment, programs: Programs, tmp_path: Path
) -> None:
    """Without the cells whose tools are missing, which the tests above name."""
    async with AsyncExitStack() as cells:
        watching = []
        for way, stack in product(WAYS, PROGRAMS):
            organization = f"{stack.replace(' ', '-')}-{way}"
            folder = tmp_path / organization
            folder.mkdir()
            with suppress(pytest.skip.Exception):
                address = await cells.enter_async_context(proxy(way, pulsa.settings["PULSA_LISTEN"], folder))
                await pulsa.grant(CREDITS, organization)
                token = pulsa.token(organization_id=organization, lifetime_seconds=IDLE_SECONDS + 300)
                cell = running(programs, stack, address=address, token=token, organization=organization, mode="watch")
                watching.append(await cells.enter_async_context(cell))
        for watched in watching:
            await watched.prints(str(CREDITS))
        ended = await ended_streams(pulsa)
        await asyncio.sleep(IDLE_SECONDS)
        for watched in watching:
            await pulsa.grant(1, watched.organization)
            await watched.prints(str(CREDITS + 1))
            assert watched.lines.count("open") == 1, watched.organization
        # Clients that open a stream again print no second "open".
        assert await ended_streams(pulsa) == ended


async def ended_streams(pulsa: ProcessDeployment) -> float:
    """The balance streams that have ended, for whatever reason."""
    url = f"http://{pulsa.settings['PULSA_METRICS_LISTEN']}/metrics"
    async with aiohttp.ClientSession() as scraper, scraper.get(url) as response:
        families = list(text_string_to_metric_families(await response.text()))
    requests = [each for family in families for each in family.samples if each.name == "pulsa_rpc_requests_total"]
    return sum(each.value for each in requests if each.labels["rpc"].endswith("WatchBalance"))
