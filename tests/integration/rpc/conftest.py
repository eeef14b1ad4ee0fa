"""What the tests of the front door may ask for."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.integration.rpc.house import House, open_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


@pytest.fixture
async def channel(house: House) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(house.address) as opened:
        yield opened
