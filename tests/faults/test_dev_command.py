"""`python -m server dev`, which `make run` runs: restarts, Ctrl-C, and a second server in the same data folder."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from server.cli.token import development_key
from tests.callers import Caller
from tests.faults.processes import Process, free_ports, listens
from tests.waiting import until

NAMES = ("PULSA_LISTEN", "PULSA_WEBHOOK_LISTEN", "PULSA_METRICS_LISTEN")
PORT_NAMES = ("PULSA_SANDBOX_STRIPE_PORT", "PULSA_SANDBOX_MESSAGES_PORT", "PULSA_SANDBOX_BILLING_PORT")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """A data folder and free ports for this test."""
    listening, others = free_ports(len(NAMES)), free_ports(len(PORT_NAMES))
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(NAMES, listening, strict=True)}
    ports = {name: str(port) for name, port in zip(PORT_NAMES, others, strict=True)}
    return {"PULSA_DATA": str(tmp_path / "data"), **addresses, **ports}


@asynccontextmanager
async def running_dev_server(settings: dict[str, str], output: Path) -> AsyncIterator[tuple[Process, Caller]]:
    """A server that has printed that it runs. It is killed on exit if it still runs."""
    process = Process("dev", settings, output=output)
    try:
        await process.wait_for_output("To try in another terminal")
        async with grpc.aio.insecure_channel(settings["PULSA_LISTEN"]) as channel:
            yield process, Caller(channel, development_key(Path(settings["PULSA_DATA"])))
    finally:
        await process.kill()


def postgres_pid(settings: dict[str, str]) -> int:
    pid, _ = (Path(settings["PULSA_DATA"]) / "postgres" / "owner.lock").read_text().split()
    return int(pid)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_accepted_sends_survive_kill_9_and_ctrl_c_stops_every_process(
    settings: dict[str, str], tmp_path: Path
) -> None:
    async with running_dev_server(settings, tmp_path / "first.log") as (first, caller):
        await caller.grant(10)
        await caller.send(email="jane@mail.example")
        await first.wait_for_output("jane@mail.example: code ")
        await first.kill()

    async with running_dev_server(settings, tmp_path / "second.log") as (second, caller):
        assert await caller.balance() == 9
        second_server = Process("dev", settings, output=tmp_path / "second-server.log")
        audit = Process("audit", settings, output=tmp_path / "audit.log")
        assert (await second_server.wait_for_exit(), await audit.wait_for_exit()) == (2, 0)
        await caller.send(sms="+6281234567890")
        pid = postgres_pid(settings)
        second.interrupt()
        assert await second.wait_for_exit() == 0

    assert second.output.rstrip().endswith("Stopping …")
    assert "every ledger holds" in audit.output
    _, error = second_server.output.splitlines()
    assert error.endswith(f"('127.0.0.1', {settings['PULSA_SANDBOX_STRIPE_PORT']}): address already in use")
    await until(lambda: not is_running(pid))
    assert not [address for address in settings.values() if ":" in address and listens(int(address.split(":")[1]))]


async def test_ctrl_c_during_startup_stops_the_server(settings: dict[str, str], tmp_path: Path) -> None:
    process = Process("dev", settings, output=tmp_path / "dev.log")
    try:
        await process.wait_for_output("Starting PostgreSQL")

        process.interrupt()

        assert await process.wait_for_exit() == 130
    finally:
        await process.kill()
    assert "Traceback" not in process.output
