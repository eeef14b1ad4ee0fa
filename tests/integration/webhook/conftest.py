"""A sidecar on a free port in front of a fake credit service, both over their real protocols."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from pulsa.tokens import token_from_file

from server.webhook.relay import Relay
from server.webhook.sidecar import Sidecar, SidecarLimits, start_sidecar
from tests.integration.webhook.fake_credit_service import FakeCreditService


@pytest.fixture
async def service() -> FakeCreditService:
    return FakeCreditService()


@pytest.fixture
async def server(service: FakeCreditService) -> AsyncIterator[str]:
    """The address of the fake credit service."""
    server, address = await service.start()
    yield address
    await server.stop(None)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("first\n")
    return file


@pytest.fixture
def limits() -> SidecarLimits:
    return SidecarLimits(header_seconds=1.0, body_seconds=1.0, requests_at_once=16, connections_at_once=64)


@pytest.fixture
async def sidecar(server: str, token_file: Path, limits: SidecarLimits) -> AsyncIterator[Sidecar]:
    relay = Relay(server, token=token_from_file(token_file), credentials=None, timeout_seconds=5)
    sidecar = await start_sidecar(relay, host="127.0.0.1", port=0, limits=limits)
    yield sidecar
    await sidecar.stop()


@pytest.fixture
def webhook(sidecar: Sidecar) -> str:
    """The URL that Stripe posts webhooks to."""
    return f"http://127.0.0.1:{sidecar.port}/stripe/webhook"


@pytest.fixture
def healthz(sidecar: Sidecar) -> str:
    return f"http://127.0.0.1:{sidecar.port}/healthz"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client with a new connection for each request, and no limit of connections."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:
        yield session
