"""The server, the webhook sidecar and the stand-ins on free ports, in the process of the test."""

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from prometheus_client import CollectorRegistry

from server.cli.token import DevelopmentKey, development_key
from server.clock import DatabaseClock
from server.composition import running
from server.credits.stripe.client import Failpoint
from server.environment import load_settings
from server.providers.console import Console
from server.providers.provider import Channel
from server.sandbox.messages import message_page
from server.sandbox.stripe import start_stripe_sandbox
from server.setting_types import KEY_BYTES
from server.settings import Settings
from server.webhook.relay import Relay
from server.webhook.sidecar import PATH, start_sidecar
from tests.callers import Caller
from tests.waiting import until

WEBHOOK_SECRET = "whsec_sandbox"
KEY = b64encode(b"k" * KEY_BYTES).decode()


@dataclass(frozen=True, slots=True)
class Deployment(Caller):
    """The addresses that a caller, a customer and Stripe use, and calls to them."""

    address: str
    browser: aiohttp.ClientSession
    stripe_url: str
    webhook_url: str
    messages_url: str

    async def pay(self, top_up: Any) -> None:
        """Press the Pay button of the hosted invoice page."""
        async with self.browser.post(f"{top_up.hosted_invoice_url}/pay") as page:
            assert page.status == 200

    async def control(self, method: str, path: str, **body: Any) -> Any:
        """Call the control API of the Stripe stand-in."""
        async with self.browser.request(method, f"{self.stripe_url}/_control/{path}", json=body) as answer:
            assert answer.ok, await answer.text()
            return await answer.json()

    async def messages_to(self, destination: str) -> list[dict[str, str]]:
        """The messages to a destination, newest first."""
        async with self.browser.get(self.messages_url, params={"to": destination}) as page:
            found: list[dict[str, str]] = await page.json()
            return found

    async def all_messages(self) -> list[dict[str, str]]:
        """All messages that were sent through the console provider, newest first."""
        async with self.browser.get(self.messages_url) as page:
            found: list[dict[str, str]] = await page.json()
            return found

    async def code_sent_to(self, destination: str) -> str:
        """Return the newest code once a message has arrived."""
        await until(lambda: self.messages_to(destination))
        return (await self.messages_to(destination))[0]["code"]

    async def wait_for_balance(self, credits: int, organization_id: str = "acme") -> None:
        """Return once the balance has this value."""

        async def is_reached() -> bool:
            return await self.balance(organization_id) == credits

        await until(is_reached)


@asynccontextmanager
async def deployed(
    database_url: str,
    folder: Path,
    *,
    failpoint: Failpoint | None = None,
    clock: DatabaseClock | None = None,
    **changes: Any,
) -> AsyncIterator[Deployment]:
    """Run everything. `changes` are settings by group; `failpoint` is awaited at each of its places.

    `clock` is of a machine whose clock the test chooses.
    """
    key, console = development_key(folder), Console(None)
    async with AsyncExitStack() as stack:
        stripe = await start_stripe_sandbox(webhook_secret=WEBHOOK_SECRET)
        stack.push_async_callback(stripe.close)
        messages_port = await stack.enter_async_context(message_page(console, port=0))
        server = await stack.enter_async_context(
            running(
                _settings(key, stripe.url, changes),
                database_url=database_url,
                console=console,
                failpoint=failpoint,
                registry=CollectorRegistry(),
                clock=clock,
            )
        )
        address = f"127.0.0.1:{server.port}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        token = Caller(channel, key).token(organization_id="*", permissions=["stripe.relay"])
        relay = Relay(address, token=lambda: token, credentials=None, timeout_seconds=10)
        sidecar = await start_sidecar(relay, host="127.0.0.1", port=0)
        stack.push_async_callback(sidecar.stop)
        webhook_url = f"http://127.0.0.1:{sidecar.port}{PATH}"
        stripe.set_webhook_url(webhook_url)
        browser = await stack.enter_async_context(aiohttp.ClientSession())
        messages_url = f"http://127.0.0.1:{messages_port}/messages"
        yield Deployment(channel, key, address, browser, stripe.url, webhook_url, messages_url)


def _settings(key: DevelopmentKey, stripe_url: str, changes: dict[str, Any]) -> Settings:
    defaults = {
        "environment": "test",
        "listen": "127.0.0.1:0",
        "reflection": True,
        "lame_duck_seconds": 0,
        "database": {"connections": 4, "timeout_seconds": 20, "transaction_seconds": 20},  # also on a busy machine
        "token": {"keys": key.public_key_file, "leeway_seconds": 0},
        "secret": {"keys": f"test:{KEY}", "digest_keys": f"test:{KEY}"},
        "audit": {"keys": f"test:{KEY}"},
        "stripe": {"api_key": "sk_test_sandbox", "webhook_secrets": WEBHOOK_SECRET, "base_url": stripe_url},
        "channel": {channel.field: "console" for channel in Channel},
    }
    return load_settings({}, defaults | changes)
