"""`python -m server dev` that kills itself at a point, and its successor; Stripe and the customer live on beside it."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import psycopg
from google.protobuf.message import Message
from pulsa.errors import PulsaError

from server.rpc.development_key import development_key
from server.sandbox.stripe import start_stripe_sandbox
from server.webhook.intake import PATH
from tests.acceptance.deployment import WEBHOOK_SECRET, Deployment
from tests.conftest import TEMPLATE
from tests.faults.processes import Process, free_ports
from tests.faults.site import CHANNEL_OPTIONS
from tests.waiting import until


@dataclass(frozen=True, slots=True)
class Machine(Deployment):
    """Whoever calls it repeats what was not answered, as callers should; the first repeat finds a new process."""

    settings: dict[str, str]
    folder: Path
    processes: list[Process]

    async def start(self, stop_at: str = "") -> None:
        """A process that listens, and kills itself where it is told."""
        output = self.folder / f"dev-{len(self.processes)}.log"
        self.processes.append(Process("dev", self.settings | {"PULSA_SANDBOX_STOP_AT": stop_at}, output=output))
        await self.processes[-1].says("Three commands to try")
        await self.channel.channel_ready()

    async def kill(self) -> None:
        """Kill -9."""
        await self.processes[-1].kill()

    async def ask(self, rpc: str, request: Message, token: str | None) -> Any:
        """The answer, of the next process if this one kills itself meanwhile."""
        while True:
            try:
                return await Deployment.ask(self, rpc, request, token)
            except PulsaError as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                assert await self.processes[-1].ended() == -signal.SIGKILL
                self._end_pauses()
                await self.start()

    def _end_pauses(self) -> None:
        """An event is tried again half a minute after the try that a crash cut off: now."""
        with psycopg.connect(self.settings["PULSA_DATABASE_URL"]) as connection:
            connection.execute("UPDATE stripe_events SET next_attempt_time = now() WHERE status = 'RECEIVED'")


async def is_quiet(pulsa: Deployment, database_url: str) -> None:
    """Return once every event is delivered and processed, and who did that is alive."""

    async def nothing_waits() -> bool:
        await pulsa.balance()
        events = (await pulsa.control("GET", "events"))["events"]
        with psycopg.connect(database_url) as connection:
            received = connection.execute("SELECT FROM stripe_events WHERE status = 'RECEIVED'").fetchall()
        return not received and not any(event["undelivered"] for event in events)

    await until(nothing_waits)
    await pulsa.balance()


@contextmanager
def fresh_database(postgres: str, name: str) -> Iterator[str]:
    """The URL of a migrated, empty database."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE {TEMPLATE}')
        yield psycopg.conninfo.make_conninfo(postgres, dbname=name)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@asynccontextmanager
async def open_machine(database_url: str, folder: Path) -> AsyncIterator[Machine]:
    """Nothing runs on it yet but Stripe."""
    grpc_port, webhook_port = free_ports(2)
    address, webhook_url = f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{webhook_port}{PATH}"
    async with AsyncExitStack() as stack:
        stripe = await start_stripe_sandbox(webhook_secret=WEBHOOK_SECRET, webhook_url=webhook_url)
        stack.push_async_callback(stripe.close)
        browser = await stack.enter_async_context(aiohttp.ClientSession())
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS))
        settings = {
            "PULSA_DATA": str(folder),
            "PULSA_DATABASE_URL": database_url,
            "PULSA_DATABASE_CONNECTIONS": "4",
            "PULSA_LISTEN": address,
            "PULSA_METRICS_LISTEN": "off",
            "PULSA_WEBHOOK_LISTEN": f"127.0.0.1:{webhook_port}",
            "PULSA_STRIPE_BASE_URL": stripe.url,
            "PULSA_STRIPE_TIMEOUT_SECONDS": "1",
            "PULSA_STRIPE_LEASE_SECONDS": "3.5",
            # Its own stand-ins, whom nobody calls.
            "PULSA_SANDBOX_STRIPE_PORT": "0",
            "PULSA_SANDBOX_MESSAGES_PORT": "0",
        }
        key = development_key(folder)
        machine = Machine(channel, key, browser, stripe.url, webhook_url, "", settings, folder, [])
        try:
            yield machine
        finally:
            for process in machine.processes:
                await process.kill()
