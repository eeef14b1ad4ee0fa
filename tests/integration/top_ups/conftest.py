"""A shop for each test, in front of a Stripe of its own."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
import stripe
from aiohttp import web

from server.database.pool import Pool
from server.sandbox.stripe import start_stripe_sandbox
from tests.integration.top_ups.shop import API_KEY, SECRET, Shop


@pytest.fixture
async def shop(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    """Credits for sale, with webhooks delivered over HTTP."""
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    sandbox = await start_stripe_sandbox(api_key=API_KEY, webhook_secret=SECRET)
    async with aiohttp.ClientSession() as session:
        shop = Shop(sandbox, pool, session)
        shop.start()
        application = web.Application()
        application.router.add_post("/webhook", shop.webhook)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sandbox.set_webhook_url(f"http://127.0.0.1:{runner.addresses[0][1]}/webhook")
        yield shop
        await sandbox.close()
        await shop.close()
        await runner.cleanup()
