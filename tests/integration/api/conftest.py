"""Fixtures of the API's tests: a server of stub servicers with a channel to it, and the whole credit service."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import stripe
import structlog

from server.postgres.pool import Pool
from tests.integration.api.credit_service_harness import CreditServiceHarness, run_credit_service
from tests.integration.api.stub_server import StubServer, run_stub_server


@pytest.fixture(autouse=True)
def every_level() -> None:
    """Log at every level, also after a test that configured the log of a server."""
    structlog.reset_defaults()


@pytest.fixture
async def stub_server(tmp_path: Path) -> AsyncIterator[StubServer]:
    async with run_stub_server(tmp_path) as started:
        yield started


@pytest.fixture
async def channel(stub_server: StubServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(stub_server.address) as opened:
        yield opened


@pytest.fixture
async def credit_service(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[CreditServiceHarness]:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    async with run_credit_service(pool, tmp_path) as started:
        yield started
