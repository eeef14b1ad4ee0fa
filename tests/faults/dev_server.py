"""`python -m server dev` that kills itself at a failpoint, and the process that replaces it.

The stand-in for Stripe runs in the test, so that it survives the kill.
"""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import psycopg
from google.protobuf.message import Message
from pulsa.credit.v1.top_up_pb2 import TOP_UP_STATUS_CREATING
from pulsa.errors import PulsaError

from server.cli.token import development_key
from server.sandbox.stripe import start_stripe_sandbox
from server.webhook.sidecar import PATH
from tests.acceptance.deployment import WEBHOOK_SECRET, Deployment
from tests.faults.process_deployment import CHANNEL_OPTIONS
from tests.faults.processes import Process, free_ports
from tests.waiting import until


@dataclass(frozen=True, slots=True)
class DevServer(Deployment):
    """Calls that the killed process did not answer are repeated; the first repeat starts a new process."""

    settings: dict[str, str]
    folder: Path
    processes: list[Process]

    async def start(self, failpoint: str = "") -> None:
        """Start a process that kills itself at the failpoint, if one is named, and wait until it listens."""
        output = self.folder / f"dev-{len(self.processes)}.log"
        self.processes.append(Process("dev", self.settings | {"PULSA_SANDBOX_FAILPOINT": failpoint}, output=output))
        await self.processes[-1].wait_for_output("To try in another terminal")
        await self.channel.channel_ready()

    async def kill(self) -> None:
        """Send SIGKILL, and wait until it has ended."""
        await self.processes[-1].kill()

    async def ask(self, rpc: str, request: Message, token: str | None) -> Any:
        """Return the answer, of the next process if this one kills itself during the call."""
        while True:
            try:
                return await Deployment.ask(self, rpc, request, token)
            except PulsaError as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                assert await self.processes[-1].wait_for_exit() == -signal.SIGKILL
                self._make_events_due()
                await self.start()

    async def order(self, organization_id: str = "acme", **fields: Any) -> Any:
        """A new top-up, once it has its invoice: calls to Stripe time out early here, and are then repeated later."""
        top_up = await Deployment.order(self, organization_id, **fields)

        async def is_open() -> bool:
            nonlocal top_up
            top_up = (await self.call("GetTopUp", organization_id, top_up_id=top_up.top_up_id)).top_up
            return bool(top_up.status != TOP_UP_STATUS_CREATING)

        await until(is_open)
        return top_up

    def _make_events_due(self) -> None:
        """Retry events now; otherwise an attempt that a crash cut off is repeated after half a minute."""
        with psycopg.connect(self.settings["PULSA_DATABASE_URL"]) as connection:
            connection.execute("UPDATE stripe_events SET next_attempt_time = now() WHERE status = 'RECEIVED'")


async def wait_until_idle(pulsa: Deployment, database_url: str) -> None:
    """Return once every event is delivered and processed, and the process that did so answers."""

    async def is_idle() -> bool:
        await pulsa.balance()
        events = (await pulsa.control("GET", "events"))["events"]
        with psycopg.connect(database_url) as connection:
            received = connection.execute("SELECT FROM stripe_events WHERE status = 'RECEIVED'").fetchall()
        return not received and not any(event["undelivered"] for event in events)

    await until(is_idle)
    await pulsa.balance()


@asynccontextmanager
async def open_dev_server(database_url: str, folder: Path) -> AsyncIterator[DevServer]:
    """Start the stand-in for Stripe; the server is started by `DevServer.start`."""
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
            "PULSA_DATABASE_TIMEOUT_SECONDS": "10",  # for a busy machine
            "PULSA_DATABASE_TRANSACTION_SECONDS": "10",
            "PULSA_LISTEN": address,
            "PULSA_METRICS_LISTEN": "off",
            "PULSA_WEBHOOK_LISTEN": f"127.0.0.1:{webhook_port}",
            "PULSA_STRIPE_BASE_URL": stripe.url,
            "PULSA_STRIPE_TIMEOUT_SECONDS": "1",
            "PULSA_STRIPE_LEASE_SECONDS": "3.5",
            # The stand-ins of `dev` itself, which are not called.
            "PULSA_SANDBOX_STRIPE_PORT": "0",
            "PULSA_SANDBOX_MESSAGES_PORT": "0",
            "PULSA_SANDBOX_BILLING_PORT": "0",
        }
        key = development_key(folder)
        dev_server = DevServer(channel, key, address, browser, stripe.url, webhook_url, "", settings, folder, [])
        try:
            yield dev_server
        finally:
            for process in dev_server.processes:
                await process.kill()
