"""A new Stripe stand-in for each test, called by the real SDK, that sends its webhooks to a receiver."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
import stripe
from aiohttp import web

from server.sandbox.stripe import start_stripe_sandbox
from tests.integration.sandbox.stripe_harness import API_KEY, SECRET, Receiver, StripeHarness


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/webhook", receiver.handle)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhook"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def harness(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StripeHarness]:
    monkeypatch.setattr(stripe, "enable_telemetry", False)
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    sandbox = await start_stripe_sandbox(api_key=API_KEY, webhook_secret=SECRET, webhook_url=receiver.url)
    async with aiohttp.ClientSession() as session:
        yield StripeHarness(sandbox, receiver, session)
    await sandbox.close()
