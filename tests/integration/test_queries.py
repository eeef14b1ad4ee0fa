"""Guards over every named query: PostgreSQL accepts it on the migrated schema, and somebody runs it."""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from server.database.queries import Queries

SERVER = Path(__file__).parents[2] / "server"
FILES = sorted(path for path in SERVER.rglob("*.sql") if path.parent.name != "migrations")
QUERIES = [
    pytest.param(text, id=f"{path.relative_to(SERVER)}:{name}") for path in FILES for name, text in Queries(path)
]


def numbered(query: str) -> str:
    """The query with PostgreSQL's own placeholders instead of psycopg's."""
    numbers = count(1)
    places: dict[str, int] = {}
    for name in re.findall(r"%\((\w+)\)s", query):
        if name not in places:
            places[name] = next(numbers)
    return re.sub(r"%\((\w+)\)s", lambda match: f"${places[match[1]]}", query).replace("%%", "%")


@pytest.fixture(scope="module")
def schema(postgres: str) -> Iterator[psycopg.Connection]:
    """A connection to the migrated template database."""
    with psycopg.connect(psycopg.conninfo.make_conninfo(postgres, dbname="pulsa_template")) as connection:
        yield connection


@pytest.mark.parametrize("query", QUERIES)
def test_postgresql_can_prepare_the_query(schema: psycopg.Connection, query: str) -> None:
    with schema.transaction(force_rollback=True):
        schema.execute(f"PREPARE guarded AS {numbered(query)}".encode())
        schema.execute("DEALLOCATE guarded")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SERVER)))
def test_every_query_of_a_file_is_run_by_the_python_beside_it(path: Path) -> None:
    names = [name for name, _ in Queries(path)]
    code = path.with_suffix(".py").read_text()
    used = set(re.findall(r"\bSQL\.(\w+)", code))
    by_prefix = re.findall(r'startswith\("(\w+_)"\)', code)
    unused = [name for name in names if name not in used and not name.startswith(tuple(by_prefix))]
    assert (unused, used - set(names)) == ([], set())


def test_there_are_queries_to_guard() -> None:
    assert len(QUERIES) > 30
