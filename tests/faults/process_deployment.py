"""A deployment of processes: a server and a sidecar, with stand-ins for Stripe and the SMTP relay in the test."""

import asyncio
import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg

from server.cli.token import DevelopmentKey, development_key
from server.sandbox.relay import Mail, Relay
from server.sandbox.stripe import StripeSandbox, start_stripe_sandbox
from server.setting_types import KEY_BYTES
from server.webhook.sidecar import PATH
from tests.callers import Caller
from tests.faults.processes import CHECKOUT, Process
from tests.waiting import SECONDS, until

KEY = b64encode(b"k" * KEY_BYTES).decode()
LEASE_SECONDS = 6
CODE = re.compile(r"\b\d{6,8}\b")
UNSETTLED = "SELECT count(*) FROM outbox WHERE next_attempt_time < 'infinity'"
"""Deliveries without an outcome: the others are there for their fallbacks."""
CHANNEL_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass(frozen=True, slots=True)
class ProcessDeployment(Caller):
    """The processes by command, and their stand-ins. Calls are made to the server."""

    folder: Path
    settings: dict[str, str]
    relay: Relay
    stripe: StripeSandbox
    running: dict[str, Process]

    async def start(self, command: str) -> None:
        """Start `serve` or `webhook`, and wait until it listens. A restart uses the same port."""
        self.running[command] = await start_process(command, self.settings, self.folder)

    async def kill(self, command: str) -> None:
        """Send SIGKILL, and wait until it has ended."""
        await self.running[command].kill()

    async def audit(self) -> str:
        """Return the output of `python -m server audit`. Fails if it finds anything."""
        process = Process("audit", self.settings, output=self.folder / "audit.log")
        async with asyncio.timeout(SECONDS):
            assert await process.wait_for_exit() == 0, process.output
        return process.output

    async def wait_for_empty_outbox(self) -> None:
        """Return once every delivery in the outbox has its outcome."""

        def is_empty() -> bool:
            with psycopg.connect(self.settings["PULSA_DATABASE_URL"]) as connection:
                return connection.execute(UNSETTLED).fetchone() == (0,)

        await until(is_empty)

    def mails(self) -> Counter[str]:
        """The number of mails that each address has received."""
        return Counter(map(recipient, self.relay.mails))

    def code_mailed_to(self, destination: str) -> str:
        """The code in the newest mail to an address; empty if there is none."""
        texts = [mail.content.decode() for mail in self.relay.mails if recipient(mail) == destination]
        return CODE.findall(texts[-1])[0] if texts else ""


def recipient(mail: Mail) -> str:
    """The address that a mail was sent to."""
    return mail.envelope[1].partition("<")[2].partition(">")[0]


async def start_process(command: str, settings: dict[str, str], folder: Path, *, checkout: Path = CHECKOUT) -> Process:
    """Start a process and wait until it listens. If the setting has port 0, the port it took is written there."""
    name = {"serve": "PULSA_LISTEN", "webhook": "PULSA_WEBHOOK_LISTEN"}[command]
    process = Process(command, settings, output=folder / f"{command}-{uuid4()}.log", checkout=checkout)
    try:
        line: dict[str, Any] = json.loads(await process.wait_for_output('"listening"'))
    except BaseException:
        await process.kill()
        raise
    settings[name] = f"127.0.0.1:{line['port']}"
    return process


@asynccontextmanager
async def deployed_processes(
    database_url: str, folder: Path, checkout: Path = CHECKOUT, /, **changes: str
) -> AsyncIterator[ProcessDeployment]:
    """Run a server, of the code in `checkout`; `start_sidecar` adds the sidecar. `changes` are settings by name."""
    key, stripe = development_key(folder), await start_stripe_sandbox()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(stripe.close)
        relay = await stack.enter_async_context(Relay())
        settings = (
            server_settings(key, database_url=database_url, stripe_url=stripe.url, relay_port=relay.port) | changes
        )
        running = {"serve": await start_process("serve", settings, folder, checkout=checkout)}
        channel = grpc.aio.insecure_channel(settings["PULSA_LISTEN"], options=CHANNEL_OPTIONS)
        await stack.enter_async_context(channel)
        try:
            yield ProcessDeployment(channel, key, folder, settings, relay, stripe, running)
        finally:
            for process in running.values():
                await process.kill()


async def start_sidecar(deployment: ProcessDeployment) -> None:
    """Start the webhook sidecar, and point the Stripe stand-in to it."""
    token = deployment.folder / "sidecar-token"
    token.write_text(deployment.token(organization_id="*", permissions=["stripe.relay"]))
    deployment.settings["PULSA_WEBHOOK_TOKEN"] = str(token)
    deployment.settings["PULSA_WEBHOOK_SERVER"] = deployment.settings["PULSA_LISTEN"]
    await deployment.start("webhook")
    deployment.stripe.set_webhook_url(f"http://{deployment.settings['PULSA_WEBHOOK_LISTEN']}{PATH}")


def server_settings(key: DevelopmentKey, *, database_url: str, stripe_url: str, relay_port: int) -> dict[str, str]:
    """The settings of a deployment on 127.0.0.1, on free ports."""
    return {
        "PULSA_ENVIRONMENT": "test",
        "PULSA_LISTEN": "127.0.0.1:0",
        "PULSA_LAME_DUCK_SECONDS": "0",
        "PULSA_LOG_LEVEL": "debug",
        "PULSA_METRICS_LISTEN": "off",
        "PULSA_DATABASE_URL": database_url,
        "PULSA_DATABASE_CONNECTIONS": "4",
        "PULSA_TOKEN_KEYS": str(key.public_key_file),
        "PULSA_SECRET_KEYS": f"test:{KEY}",
        "PULSA_SECRET_DIGEST_KEYS": f"test:{KEY}",
        "PULSA_AUDIT_KEYS": f"test:{KEY}",
        "PULSA_STRIPE_API_KEY": "sk_test_sandbox",
        "PULSA_STRIPE_WEBHOOK_SECRETS": "whsec_sandbox",
        "PULSA_STRIPE_BASE_URL": stripe_url,
        "PULSA_DELIVERY_LEASE_SECONDS": str(LEASE_SECONDS),
        "PULSA_CHANNEL_EMAIL": "smtp",
        "PULSA_CHANNEL_WAIT_SECONDS": "0.5",
        "PULSA_SMTP_HOST": "127.0.0.1",
        "PULSA_SMTP_PORT": str(relay_port),
        "PULSA_SMTP_SECURITY": "none",
        "PULSA_SMTP_SENDER": "pulsa@example.com",
        "PULSA_SMTP_TIMEOUT_SECONDS": "2",
        "PULSA_WEBHOOK_LISTEN": "127.0.0.1:0",
    }
