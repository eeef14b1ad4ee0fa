"""Every named query: PostgreSQL accepts it on the migrated schema, and the Python file beside it runs it."""

import re
from collections.abc import Iterator
from importlib import import_module
from itertools import count, pairwise
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from server.postgres.pool import Pool, acquire
from server.postgres.queries import Queries
from tests.databases import Databases

SERVER = Path(__file__).parents[3] / "server"
FILES = sorted(path for path in SERVER.rglob("*.sql") if path.parent.name != "migrations")


def queries_of(path: Path) -> Queries:
    """The queries of a file, as the Python module beside it loads them."""
    module = import_module(".".join(path.relative_to(SERVER.parent).with_suffix("").parts))
    assert isinstance(module.SQL, Queries)
    return module.SQL


QUERIES = [
    pytest.param(text, id=f"{path.relative_to(SERVER)}:{name}") for path in FILES for name, text in queries_of(path)
]


def numbered(query: str) -> str:
    """The query with PostgreSQL's own placeholders instead of psycopg's."""
    numbers = count(1)
    positions: dict[str, int] = {}
    for name in re.findall(r"%\((\w+)\)s", query):
        if name not in positions:
            positions[name] = next(numbers)
    return re.sub(r"%\((\w+)\)s", lambda match: f"${positions[match[1]]}", query).replace("%%", "%")


@pytest.fixture(scope="module")
def schema(databases: Databases) -> Iterator[psycopg.Connection]:
    """A connection to a migrated database."""
    with databases.new() as url, psycopg.connect(url) as connection:
        yield connection


@pytest.mark.parametrize("query", QUERIES)
def test_postgresql_can_prepare_the_query(schema: psycopg.Connection, query: str) -> None:
    with schema.transaction(force_rollback=True):
        schema.execute(f"PREPARE checked AS {numbered(query)}".encode())
        schema.execute("DEALLOCATE checked")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SERVER)))
def test_every_query_of_a_file_is_run_by_the_python_beside_it(path: Path) -> None:
    names = [name for name, _ in queries_of(path)]
    code = path.with_suffix(".py").read_text()
    used = set(re.findall(r"\bSQL\.(\w+)", code))
    by_prefix = re.findall(r'startswith\("(\w+_)"\)', code)
    unused = [name for name in names if name not in used and not name.startswith(tuple(by_prefix))]
    assert (unused, used - set(names)) == ([], set())


def test_the_queries_are_found() -> None:
    assert len(QUERIES) > 30


ROWS = {
    "outbox": (
        "INSERT INTO outbox (organization_id, delivery_id, otp_id, next_attempt_time)"
        " SELECT 'acme', gen_random_uuid(), gen_random_uuid(), now() FROM generate_series(1, 1000)"
    ),
    "event_streams": (
        "INSERT INTO event_streams (organization_id, is_on, expired_until, change_time)"
        " SELECT number, true, now(), now() FROM generate_series(1, 1000) AS number"
    ),
}
"""Fill a table, which is emptied again."""
OF_ALL_ROWS = {
    "outbox": {"audit.", "key_rotation."},
    "event_streams": {"log.find_", "expiry.find_"},
}
"""The beginnings of the names of jobs' and commands' queries."""


@pytest.mark.plain_postgres
@pytest.mark.parametrize("table", ROWS)
async def test_a_plan_that_is_made_while_a_table_is_empty_does_not_read_all_of_it(
    pool: Pool, database_url: str, table: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(ROWS[table].encode())
        owner.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
        owner.execute(sql.SQL("VACUUM ANALYZE {}").format(sql.Identifier(table)))

    plans: dict[str, str] = {}
    async with acquire(pool) as connection:
        for path in FILES:
            for name, text in queries_of(path):
                query = f"{path.stem}.{name}"
                if re.search(rf"\b{table}\b", text) and not query.startswith(tuple(OF_ALL_ROWS[table])):
                    explain = f"EXPLAIN (GENERIC_PLAN, COSTS OFF) {numbered(text)}".encode()
                    rows = await (await connection.execute(explain)).fetchall()
                    plans[query] = "\n".join(row[0] for row in rows)

    assert len(plans) > 5
    assert {query: plan for query, plan in plans.items() if _reads_all_of(table, plan)} == {}


def _reads_all_of(table: str, plan: str) -> bool:
    """Whether a scan of the table has no condition of its index."""
    lines = [line.strip() for line in [*plan.splitlines(), ""]]
    return any(
        "Scan" in line and f"on {table}" in line and not following.startswith("Index Cond")
        for line, following in pairwise(lines)
    )
