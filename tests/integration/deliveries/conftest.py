"""A post office for each test, in front of providers of its own."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from server.channels.channel import Channel, ChannelName
from server.database.pool import Pool
from server.sandbox.providers import ProvidersSandbox
from server.sandbox.relay import Relay
from tests.integration.deliveries.post import OpenPost, Post, Windows


@pytest.fixture
async def windows() -> AsyncIterator[Windows]:
    """Twilio, Vonage, WhatsApp and a mail relay."""
    sandbox = ProvidersSandbox(keep=100_000)
    async with TestServer(sandbox.application()) as server, Relay() as relay:
        yield Windows(sandbox, str(server.make_url("")), relay)
        sandbox.release()


@pytest.fixture
async def open_post(pool: Pool, windows: Windows) -> AsyncIterator[OpenPost]:
    """Opens post offices as a test wants them, every channel in each unless it says otherwise."""
    opened: list[Post] = []

    def open_one(channels: Mapping[ChannelName, Channel] | None = None, **settings: Any) -> Post:
        opened.append(Post(pool, windows.channels() if channels is None else channels, **settings))
        return opened[-1]

    yield open_one
    for post in opened:
        await post.close()


@pytest.fixture
async def post(open_post: OpenPost) -> Post:
    """One with an organization that has 1,000 credits."""
    post = open_post()
    await post.fund(1000)
    return post
