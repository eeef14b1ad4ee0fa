"""Fixtures of the acceptance tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.acceptance.deployment import Deployment, deployed


@pytest.fixture
async def pulsa(database_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployed(database_url, tmp_path) as deployment:
        yield deployment
