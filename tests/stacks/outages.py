"""Outages under the calls of clients: what was answered OK is stored, and every send is charged once."""

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from server.postgres import embedded
from server.postgres.migrate import migrate
from tests.fault_proxy import proxy_to
from tests.faults.process_deployment import ProcessDeployment, deployed_processes
from tests.faults.processes import free_ports
from tests.stacks.programs import Programs
from tests.stacks.stack import Stack, running
from tests.waiting import until

CREDITS: Final = 100_000
_CALLERS: Final = 8
_SENDS: Final = 10
_CUTS: Final = 5


@dataclass(frozen=True, slots=True)
class Callers:
    """Programs that send, and those that watch the balance meanwhile."""

    sending: Sequence[Stack]
    watching: Sequence[Stack]

    async def send_more(self, sends: int = _SENDS) -> None:
        """Return once each has sent so many more."""
        for stack in self.sending:
            await stack.sends(sends)


@asynccontextmanager
async def calling(
    pulsa: ProcessDeployment, programs: Programs, stacks: Sequence[str], *, address: str, callers: int = _CALLERS
) -> AsyncIterator[Callers]:
    """Let each stack send, with so many callers, and watch its balance; at the end the money must be exact."""
    sending: list[Stack] = []
    watching: list[Stack] = []
    async with AsyncExitStack() as programs_running:
        organizations = [stack.replace(" ", "-") for stack in stacks]
        for organization in organizations:
            await pulsa.grant(CREDITS, organization)
        for stack, organization in zip(stacks, organizations, strict=True):
            start = partial(
                running,
                programs,
                stack,
                address=address,
                token=pulsa.token(organization_id=organization),
                organization=organization,
            )
            watching.append(await programs_running.enter_async_context(start(mode="watch")))
            await watching[-1].prints(str(CREDITS))
            sending.append(await programs_running.enter_async_context(start(mode="send", callers=callers)))
        all_of_them = Callers(sending, watching)
        await all_of_them.send_more(3)
        yield all_of_them
        sent = [len(await stack.ended()) for stack in sending]
        for watched, sends in zip(watching, sent, strict=True):
            left = CREDITS - sends
            assert await pulsa.balance(watched.organization) == left
            assert (await pulsa.call("VerifyLedger", watched.organization)).entry_count == 1 + sends
            await watched.prints(str(left))


async def restart(programs: Programs, stacks: Sequence[str], database_url: str, folder: Path) -> None:
    """The server is stopped and started, then killed and started."""
    async with (
        deployed_processes(database_url, folder) as pulsa,
        calling(pulsa, programs, stacks, address=pulsa.settings["PULSA_LISTEN"]) as callers,
    ):
        await restarted(pulsa, callers)


async def restarted(pulsa: ProcessDeployment, callers: Callers, *, sends: int = _SENDS) -> None:
    """Stop and start the server, then kill and start it; the callers go on after each."""
    pulsa.running["serve"].signal(signal.SIGTERM)
    assert await pulsa.running["serve"].wait_for_exit() == 0
    await pulsa.start("serve")
    await callers.send_more(sends)
    await pulsa.kill("serve")
    await pulsa.start("serve")
    await callers.send_more(sends)


async def overload(programs: Programs, stacks: Sequence[str], database_url: str, folder: Path) -> None:
    """The server has room for a few calls, and refuses the others."""
    (port,) = free_ports(1)
    few = {"PULSA_LIMIT_CALLS_AT_ONCE": "8", "PULSA_METRICS_LISTEN": f"127.0.0.1:{port}"}

    async def refused() -> bool:
        async with aiohttp.ClientSession() as scraper, scraper.get(f"http://127.0.0.1:{port}/metrics") as metrics:
            return 'code="RESOURCE_EXHAUSTED"' in await metrics.text()

    async with (
        deployed_processes(database_url, folder, **few) as pulsa,
        calling(pulsa, programs, stacks, address=pulsa.settings["PULSA_LISTEN"], callers=16) as callers,
    ):
        await until(refused)
        await callers.send_more(3 * _SENDS)


async def cut(programs: Programs, stacks: Sequence[str], database_url: str, folder: Path) -> None:
    """The connections between clients and server are reset, again and again."""
    async with (
        deployed_processes(database_url, folder) as pulsa,
        proxy_to(_host_and_port(pulsa.settings["PULSA_LISTEN"])) as (network, through_it),
        calling(
            pulsa, programs, stacks, address="127.0.0.1:{port}".format_map(conninfo_to_dict(through_it))
        ) as callers,
    ):
        for _ in range(_CUTS):
            network.reset()
            await callers.send_more(5)


async def failover(programs: Programs, stacks: Sequence[str], folder: Path) -> None:
    """The database's primary crashes, and its synchronous standby is promoted."""
    with _primary(folder) as primary, _standby(folder, primary) as standby:
        parts = [conninfo_to_dict(server.url) for server in (primary, standby)]
        hosts = {name: ",".join(str(part[name]) for part in parts) for name in ("host", "port")}
        async with (
            deployed_processes(make_conninfo(primary.url, **hosts), folder) as pulsa,
            calling(pulsa, programs, stacks, address=pulsa.settings["PULSA_LISTEN"]) as callers,
        ):
            await callers.send_more()
            os.kill(primary.pid, signal.SIGQUIT)
            with psycopg.connect(standby.url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
                connection.execute("SELECT pg_promote(), pg_reload_conf()")
            await callers.send_more()
            await pulsa.audit()


@contextmanager
def _primary(folder: Path) -> Iterator[embedded.EmbeddedPostgres]:
    with embedded.start(folder / "primary", settings={"fsync": "off"}) as server:
        migrate(server.url)
        yield server


@contextmanager
def _standby(folder: Path, primary: embedded.EmbeddedPostgres) -> Iterator[embedded.EmbeddedPostgres]:
    """A standby without which the primary commits nothing."""
    copy = folder / "standby"
    copy.mkdir()
    options = ["--checkpoint=fast", "--write-recovery-conf", "--no-sync"]
    command = [str(embedded._program("pg_basebackup")), f"--dbname={primary.url}", f"--pgdata={copy / 'data'}"]
    subprocess.run([*command, *options], check=True, capture_output=True)  # noqa: S603 - of the embedded PostgreSQL
    shutil.copy(folder / "primary" / "password", copy)
    owner = (folder / "primary" / "data").stat()
    for path in (copy / "data", *(copy / "data").rglob("*")):  # root makes the copy, and does not run it
        os.chown(path, owner.st_uid, owner.st_gid)
    with embedded.start(copy, settings={"fsync": "off"}) as server:
        with psycopg.connect(primary.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
        yield server


def _host_and_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    return make_conninfo(host=host, port=port)
