"""A driver for each test, with a Stripe stand-in of its own."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
import stripe
from aiohttp import web

from server.postgres.pool import Pool
from server.sandbox.stripe import start_stripe_sandbox
from tests.integration.top_ups.driver import API_KEY, SECRET, TopUpDriver


@pytest.fixture
async def driver(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TopUpDriver]:
    """One replica is running, and webhooks are delivered to it over HTTP."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    sandbox = await start_stripe_sandbox(api_key=API_KEY, webhook_secret=SECRET)
    async with aiohttp.ClientSession() as session:
        driver = TopUpDriver(sandbox, pool, session)
        driver.start()
        application = web.Application()
        application.router.add_post("/webhook", driver.webhook)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sandbox.set_webhook_url(f"http://127.0.0.1:{runner.addresses[0][1]}/webhook")
        yield driver
        await sandbox.close()
        await driver.close()
        await runner.cleanup()
