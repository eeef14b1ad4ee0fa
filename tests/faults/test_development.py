"""`python -m server dev`, which is what `make run` runs: restarts, Ctrl-C, and a second one beside it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from server.rpc.development_key import development_key
from tests.callers import Caller
from tests.faults.processes import Process, free_ports, listens
from tests.waiting import until

NAMES = ("PULSA_LISTEN", "PULSA_WEBHOOK_LISTEN", "PULSA_METRICS_LISTEN")
PORT_NAMES = ("PULSA_SANDBOX_STRIPE_PORT", "PULSA_SANDBOX_MESSAGES_PORT")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """A data folder and ports of its own."""
    *listening, stripe, messages = free_ports(len(NAMES) + len(PORT_NAMES))
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(NAMES, listening, strict=True)}
    ports = dict(zip(PORT_NAMES, (str(stripe), str(messages)), strict=True))
    return {"PULSA_DATA": str(tmp_path / "data"), **addresses, **ports}


@asynccontextmanager
async def development(settings: dict[str, str], output: Path) -> AsyncIterator[tuple[Process, Caller]]:
    """A machine that says that it runs; killed at the end when it has not ended by then."""
    process = Process("dev", settings, output=output)
    try:
        await process.says("Three commands to try")
        async with grpc.aio.insecure_channel(settings["PULSA_LISTEN"]) as channel:
            yield process, Caller(channel, development_key(Path(settings["PULSA_DATA"])))
    finally:
        await process.kill()


def postgres_pid(settings: dict[str, str]) -> int:
    pid, _ = (Path(settings["PULSA_DATA"]) / "postgres" / "owner.lock").read_text().split()
    return int(pid)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_what_was_accepted_survives_kill_9_and_ctrl_c_leaves_nothing_behind(
    settings: dict[str, str], tmp_path: Path
) -> None:
    async with development(settings, tmp_path / "first.log") as (first, caller):
        await caller.grant(10)
        await caller.send(email="jane@mail.example")
        await first.says("jane@mail.example: code ")
        await first.kill()

    async with development(settings, tmp_path / "second.log") as (second, caller):
        assert await caller.balance() == 9
        beside = Process("dev", settings, output=tmp_path / "beside.log")
        audit = Process("audit", settings, output=tmp_path / "audit.log")
        assert (await beside.ended(), await audit.ended()) == (2, 0)
        await caller.send(sms="+6281234567890")
        pid = postgres_pid(settings)
        second.interrupt()
        assert await second.ended() == 0

    assert second.output.rstrip().endswith("Stopping …")
    assert "every ledger holds" in audit.output
    _, complaint = beside.output.splitlines()
    assert complaint.endswith(f"('127.0.0.1', {settings['PULSA_SANDBOX_STRIPE_PORT']}): address already in use")
    await until(lambda: not runs(pid))
    assert not [address for address in settings.values() if ":" in address and listens(int(address.split(":")[1]))]


async def test_ctrl_c_during_the_start_ends_it_too(settings: dict[str, str], tmp_path: Path) -> None:
    process = Process("dev", settings, output=tmp_path / "dev.log")
    await process.says("Starting PostgreSQL")

    process.interrupt()

    assert await process.ended() == 130
    assert "Traceback" not in process.output
