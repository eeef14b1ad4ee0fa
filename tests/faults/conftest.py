"""Fixtures of the fault tests."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.cli.token import development_key
from tests.faults.process_deployment import ProcessDeployment, deployed_processes, server_settings

# A background job of a shell ignores SIGINT, and so would every process that the tests start from it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> dict[str, str]:
    """Settings of a server that starts, but can reach neither Stripe nor an SMTP relay."""
    key = development_key(tmp_path)
    return server_settings(key, database_url=database_url, stripe_url="http://127.0.0.1:1", relay_port=1)


@pytest.fixture
async def deployment(database_url: str, tmp_path: Path) -> AsyncIterator[ProcessDeployment]:
    async with deployed_processes(database_url, tmp_path) as running:
        yield running
