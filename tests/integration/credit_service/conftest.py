"""An office for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import stripe

from server.database.pool import Pool
from tests.integration.credit_service.office import Office, open_office


@pytest.fixture
async def office(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    async with open_office(pool, tmp_path) as opened:
        yield opened
