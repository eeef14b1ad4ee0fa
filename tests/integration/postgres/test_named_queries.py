"""Every named query: PostgreSQL accepts it on the migrated schema, and the Python file beside it runs it."""

import re
from collections.abc import Iterator
from importlib import import_module
from itertools import count
from pathlib import Path

import psycopg
import pytest

from server.postgres.queries import Queries

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
def schema(postgres: str) -> Iterator[psycopg.Connection]:
    """A connection to the migrated template database."""
    with psycopg.connect(psycopg.conninfo.make_conninfo(postgres, dbname="pulsa_template")) as connection:
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
