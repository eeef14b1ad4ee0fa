"""Two replicas over one database."""

from collections.abc import AsyncIterator

import pytest

from server.postgres.pool import Pool, open_pool
from tests.integration.otps.replica import Replica


@pytest.fixture
async def other_pool(database_url: str) -> AsyncIterator[Pool]:
    """The connections of a second replica."""
    pool = await open_pool(database_url, size=4)
    yield pool
    await pool.close()


@pytest.fixture
def replica(pool: Pool) -> Replica:
    """A replica without limits on sends."""
    return Replica(pool)


@pytest.fixture
def other_replica(other_pool: Pool) -> Replica:
    """A second replica of the same database, without limits."""
    return Replica(other_pool)
