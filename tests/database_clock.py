"""A database clock that a test can step: PostgreSQL finds a `clock_timestamp` of the test before its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import make_conninfo

_SHIFTED = """
CREATE SCHEMA shifted;
GRANT USAGE ON SCHEMA shifted TO PUBLIC;
CREATE TABLE shifted.shift AS SELECT interval '0' AS shift;
GRANT SELECT ON shifted.shift TO PUBLIC;
CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
AS 'SELECT pg_catalog.clock_timestamp() + shift FROM shifted.shift';
"""


@contextmanager
def steppable_clock(url: str) -> Iterator[tuple[str, Callable[[float], None]]]:
    """A URL whose sessions have the shifted clock, and a function that sets it to be so many seconds ahead."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SHIFTED.encode())

        def set_ahead(seconds: float) -> None:
            connection.execute("UPDATE shifted.shift SET shift = make_interval(secs => %s)", [seconds])

        yield make_conninfo(url, options="-csearch_path=shifted,pg_catalog,public"), set_ahead
