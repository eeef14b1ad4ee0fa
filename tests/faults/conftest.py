"""What the fault tests may ask for."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.rpc.development_key import development_key
from tests.faults.site import Site, open_site, settings_of

# A shell's background job is born deaf to Ctrl-C, and so would be every process that its tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> dict[str, str]:
    """Of a server that can start, but finds no Stripe and no relay."""
    key = development_key(tmp_path)
    return settings_of(key, database_url=database_url, stripe_url="http://127.0.0.1:1", relay_port=1)


@pytest.fixture
async def site(database_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(database_url, tmp_path) as opened:
        yield opened
