"""A harness for each test, in front of provider stand-ins of its own."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from server.postgres.pool import Pool
from server.providers.provider import Channel, Provider
from server.sandbox.providers import ProvidersSandbox
from server.sandbox.relay import Relay
from tests.integration.delivery.harness import DeliveryHarness, OpenHarness, ProviderStandIns


@pytest.fixture
async def stand_ins() -> AsyncIterator[ProviderStandIns]:
    """Twilio, Vonage, WhatsApp and a mail relay."""
    sandbox = ProvidersSandbox(keep=100_000)
    async with TestServer(sandbox.application()) as server, Relay() as relay:
        yield ProviderStandIns(sandbox, str(server.make_url("")), relay)
        sandbox.release()


@pytest.fixture
async def open_harness(pool: Pool, stand_ins: ProviderStandIns) -> AsyncIterator[OpenHarness]:
    """Opens harnesses with the settings that a test needs; each has a provider for every channel by default."""
    opened: list[DeliveryHarness] = []

    def open_one(providers: Mapping[Channel, Provider] | None = None, **settings: Any) -> DeliveryHarness:
        opened.append(DeliveryHarness(pool, stand_ins.providers() if providers is None else providers, **settings))
        return opened[-1]

    yield open_one
    for harness in opened:
        await harness.close()


@pytest.fixture
async def harness(open_harness: OpenHarness) -> DeliveryHarness:
    """A harness whose organization has 1,000 credits."""
    harness = open_harness()
    await harness.fund(1000)
    return harness
