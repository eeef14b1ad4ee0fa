"""Fixtures of all tests: a real PostgreSQL, and in it for each test a migrated database that is audited at the end.

With TEST_CLUSTER_URL it is a Citus cluster.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from server.credits.audit import RULES
from server.postgres import embedded
from server.postgres.conninfo import Timeouts
from server.postgres.migrate import migrate
from server.postgres.pool import Pool, open_pool
from tests.databases import TEMPLATE, Databases, cluster_databases, url_of

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
"""How fast the machine is fails no test."""

TIMEOUTS = Timeouts(connection=5, transaction=5)
"""Longer than a server's: several tests run at once, also on a busy machine."""


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """A PostgreSQL server that does not sync to disk, or the cluster, with a migrated template database."""
    if url := os.environ.get("TEST_CLUSTER_URL"):
        with cluster_databases(url) as databases:
            yield databases
        return
    folder: Path = tmp_path_factory.mktemp("postgres")
    with embedded.start(folder, settings={"fsync": "off", "max_connections": "200"}) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        migrate(url_of(server.url, TEMPLATE))
        yield Databases([server.url], TEMPLATE)


@pytest.fixture(scope="session")
def postgres(databases: Databases) -> str:
    """The URL of the PostgreSQL server; of a cluster's coordinator."""
    return databases.nodes[0]


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """The URL of a new, migrated, empty database, for its schema's owner. At the end the audit must find nothing."""
    with databases.new() as url:
        yield url
        findings = _findings(url)
    assert findings == []


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """Connections to the test's own database, in the application's role."""
    pool = await open_pool(database_url, size=4, timeouts=TIMEOUTS)
    yield pool
    await pool.close()


@pytest.fixture
async def one_connection(database_url: str) -> AsyncIterator[Pool]:
    """As `pool`, with a single connection, which every borrower gets in the state that the last one left."""
    pool = await open_pool(database_url, size=1, timeouts=TIMEOUTS)
    yield pool
    await pool.close()


def _findings(url: str) -> list[tuple[str, object]]:
    """What `python -m server audit` would report."""
    everything = {"organization_id": None, "deliveries_since": None, "limit": 10}
    with psycopg.connect(url) as connection:
        return [(rule, row) for rule, query in RULES.items() for row in connection.execute(query.encode(), everything)]
