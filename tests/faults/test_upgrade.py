"""An upgrade under load: the last release beside this version on one database, through every later migration."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import grpc
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pulsa.credit.v1.top_up_pb2 import TOP_UP_STATUS_PAID
from pulsa.errors import PulsaError

from server.postgres.migrate import MIGRATIONS, load_migrations, migrate
from tests.callers import Caller
from tests.faults.process_deployment import ProcessDeployment, deployed_processes, start_process, start_sidecar
from tests.faults.processes import CHECKOUT
from tests.faults.replicas import ROUND_ROBIN
from tests.waiting import until

CALLERS = 4
GRANTED = 100_000
REPEATED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
"""What a server that stops may answer; docs/api.md says to repeat the call."""


class Customers:
    """Callers who each send a code, verify it and read the balance, again and again."""

    def __init__(self, deployment: ProcessDeployment) -> None:
        self._site = deployment
        self._numbers = count(1)
        self.caller: Caller = deployment
        self.stopped = False
        self.rounds = 0

    async def finish_rounds(self) -> None:
        """Return once every caller has begun a new round and ended it."""
        wanted = self.rounds + 2 * CALLERS
        await until(lambda: self.rounds >= wanted)

    async def keep_calling(self) -> None:
        while not self.stopped:
            address = f"customer-{next(self._numbers)}@mail.example"
            sent = await self._insist("SendOtp", destination={"email": address}, purpose="login")
            await until(partial(self._site.code_mailed_to, address))
            await self._insist("VerifyOtp", otp_id=sent.otp.otp_id, code=self._site.code_mailed_to(address))
            await self._insist("GetBalance")
            self.rounds += 1

    async def _insist(self, rpc: str, **fields: Any) -> Any:
        """The answer. Repeats with the same request_id what the contract says to repeat."""
        if rpc != "GetBalance":
            fields["request_id"] = str(uuid4())
        while True:
            try:
                return await self.caller.call(rpc, **fields)
            except PulsaError as error:
                if error.code not in REPEATED:
                    raise
                await asyncio.sleep(0.05)


@asynccontextmanager
async def calling(deployment: ProcessDeployment) -> AsyncIterator[Customers]:
    """Run the callers during the block; each ends its last round. A call that fails for good fails the test."""
    customers = Customers(deployment)
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(customers.keep_calling())
        try:
            yield customers
        finally:
            customers.stopped = True


def git(*arguments: str) -> bytes:
    """What git prints about this checkout; nothing when it fails."""
    command = ["git", "-C", str(CHECKOUT), *arguments]
    return subprocess.run(command, capture_output=True, check=False).stdout  # noqa: S603 - with arguments from here


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The code of the last release, or of the commit that UPGRADE_BASE names."""
    base = os.environ.get("UPGRADE_BASE") or git("describe", "--tags", "--abbrev=0", "--match=v*").decode().strip()
    if not base:
        pytest.skip(
            "no release is tagged, or this clone is too shallow to have its tag; UPGRADE_BASE may name a commit"
        )
    archive = git("archive", base, "server", "clients/python")
    assert archive, f"git has no commit {base}"
    folder = tmp_path / "release"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)  # noqa: S603, S607 - what git packed
    return folder


@pytest.fixture
def released_database(release: Path, postgres: str) -> Iterator[str]:
    """The URL of an empty database with the release's schema."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE upgraded")
        url = make_conninfo(postgres, dbname="upgraded")
        migrate(url, folder=release / MIGRATIONS.relative_to(CHECKOUT))
        yield url
        connection.execute("DROP DATABASE upgraded WITH (FORCE)")


def later_migrations(release: Path, folder: Path) -> Iterator[Path]:
    """For each migration since the release, a folder that has it as the last one."""
    released = len(load_migrations(release / MIGRATIONS.relative_to(CHECKOUT)))
    for migration in load_migrations()[released:]:
        until_this = folder / f"until-{migration.version}"
        until_this.mkdir()
        for path in sorted(MIGRATIONS.glob("[0-9]*.sql"))[: migration.version]:
            shutil.copy(path, until_this)
        yield until_this


async def pay(top_up: Any) -> None:
    """Press the Pay button of the hosted invoice page."""
    async with aiohttp.ClientSession() as browser, browser.post(f"{top_up.hosted_invoice_url}/pay") as page:
        assert page.status == 200


async def test_no_call_fails_while_this_version_replaces_the_last_release(
    released_database: str, release: Path, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(deployed_processes(released_database, tmp_path, release))
        await start_sidecar(old)
        await old.grant(GRANTED)
        top_up = await old.order()
        async with calling(old) as customers:
            await customers.finish_rounds()
            for folder in later_migrations(release, tmp_path):
                await asyncio.to_thread(migrate, released_database, folder=folder)
                await customers.finish_rounds()
            settings = old.settings | {"PULSA_LISTEN": "127.0.0.1:0"}
            old.running["new"] = await start_process("serve", settings, tmp_path)
            both = f"ipv4:{old.settings['PULSA_LISTEN']},{settings['PULSA_LISTEN']}"
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(both, options=ROUND_ROBIN))
            customers.caller = Caller(channel, old.key)
            await customers.finish_rounds()
            await pay(top_up)
            await until(lambda: is_paid(customers.caller))
            old.running["serve"].signal(signal.SIGTERM)
            assert await old.running["serve"].wait_for_exit() == 0
            await customers.finish_rounds()
        await old.wait_for_empty_outbox()

        assert await customers.caller.balance() == GRANTED + top_up.credits - customers.rounds
        assert "every ledger holds" in await old.audit()


async def is_paid(caller: Caller) -> bool:
    """Whether the organization's only top-up is paid."""
    [top_up] = (await caller.call("ListTopUps")).top_ups
    return bool(top_up.status == TOP_UP_STATUS_PAID)
