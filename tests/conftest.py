"""Fixtures of all tests: a real PostgreSQL, and in it for each test a migrated database that is audited at the end."""

from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from server.credits.audit import RULES
from server.postgres import embedded
from server.postgres.migrate import migrate
from server.postgres.pool import Pool, Timeouts, open_pool

TEMPLATE = "pulsa_template"
TIMEOUTS = Timeouts(connection=5, transaction=5)
"""Longer than a server's: several tests run at once, also on a busy machine."""
_numbers = count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that does not sync to disk, with a migrated template database in it."""
    folder: Path = tmp_path_factory.mktemp("postgres")
    with embedded.start(folder, settings={"fsync": "off", "max_connections": "200"}) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        migrate(_url_of(server.url, TEMPLATE))
        yield server.url


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """The URL of a new, migrated, empty database, for its schema's owner. At the end the audit must find nothing."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        yield _url_of(postgres, name)
        findings = _findings(_url_of(postgres, name))
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
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


def _url_of(url: str, database: str) -> str:
    return psycopg.conninfo.make_conninfo(url, dbname=database)
