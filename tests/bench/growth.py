"""Sends with large tables compared with small ones, and two workers compared with one."""

import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg

from server.postgres.queries import load_queries
from tests.bench.calls import SEND_OTP, spread_sends
from tests.bench.environment import SPREAD, BenchmarkEnvironment
from tests.bench.rounds import Rounds, Subject

SMALL, LARGE = "small", "large"
SMALL_ENTRIES, LARGE_ENTRIES = 10_000, 10_000_000
_WORKER_CONNECTIONS = 32  # the kernel distributes connections over workers: many spread evenly

SQL = load_queries(__file__)
_INSERTS = {name.removeprefix("insert_"): query for name, query in SQL if name.startswith("insert_")}

Figures = Mapping[str, object]


def fill(environment: BenchmarkEnvironment, database: str, entries: int) -> None:
    """Add the sends of the last 400 days to the spread organizations, except the most recent ones.

    The ledger keeps every send. OTPs and deliveries are kept for 90 days, so only the last fifth of the sends has them.
    """
    database_url, parameters = (
        environment.database_url(database),
        _sends(entries, first=0, last=entries - _recent(entries) - 1),
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        indexes = connection.execute(SQL.find_indexes.encode(), {"tables": list(_INSERTS)}).fetchall()
        for _, drop, _ in indexes:
            connection.execute(drop)
        connection.execute(SQL.create_partitions.encode())
        connection.execute(SQL.create_sends.encode())
        with ThreadPoolExecutor() as threads:  # PostgreSQL fills a table with one core
            fillings = [
                threads.submit(
                    _fill_table, database_url, insert, parameters, [row[2] for row in indexes if row[0] == table]
                )
                for table, insert in _INSERTS.items()
            ]
        for filling in fillings:
            filling.result()
        for statement in ("VACUUM (ANALYZE, FREEZE)", "CHECKPOINT"):
            connection.execute(statement.encode())


def _fill_table(database_url: str, insert: str, parameters: Mapping[str, object], indexes: Sequence[str]) -> None:
    """Insert the rows, then build the indexes: that takes a fraction of the time."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(insert.encode(), parameters)
        for create in indexes:
            connection.execute(create.encode())


def add_recent_sends(environment: BenchmarkEnvironment, database: str, entries: int) -> None:
    """Add the most recent sends, on the measured PostgreSQL.

    The first change of a page after a checkpoint writes the whole page to the log. With 10,000 organizations that
    affects minutes of sends, but not most of the time between two checkpoints: that time is measured.
    """
    parameters = _sends(entries, first=entries - _recent(entries), last=entries - 1)
    with psycopg.connect(environment.database_url(database), autocommit=True) as connection:
        for statement in (*_INSERTS.values(), SQL.write_balances):
            connection.execute(statement.encode(), parameters)
        for statement in (SQL.drop_sends, "ANALYZE"):
            connection.execute(statement.encode())


def _sends(entries: int, *, first: int, last: int) -> Mapping[str, object]:
    kept = entries - max(entries // 5, _recent(entries))
    return {
        "entries": entries,
        "first": first,
        "last": last,
        "first_kept": kept,
        "organizations": SPREAD,
        "until": time.time(),
    }


def _recent(entries: int) -> int:
    return min(entries, 5 * SPREAD)


def growth(environment: BenchmarkEnvironment, *, count: int, seconds: float) -> Figures:
    """SendOtp over 10,000 organizations with LARGE_ENTRIES over the same with SMALL_ENTRIES, alternating."""
    add_recent_sends(environment, SMALL, SMALL_ENTRIES)
    add_recent_sends(environment, LARGE, LARGE_ENTRIES)
    with environment.server("pulsa", SMALL) as few, environment.server("pulsa", LARGE) as many:
        small, large = (Subject(server, SEND_OTP, spread_sends, environment.token) for server in (few, many))
        for subject in (small, large):
            subject.warm()
        for _ in range(count):
            small.run(seconds)
            large.run(seconds)
    ratios = [grown / young for grown, young in zip(large.per_second, small.per_second, strict=True)]
    return {
        "entries": LARGE_ENTRIES,
        "per_second": statistics.median(large.per_second),
        "per_second_with_10_thousand": statistics.median(small.per_second),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def workers(environment: BenchmarkEnvironment, rounds: Rounds, database: str, *, count: int, seconds: float) -> Figures:
    """Two supervised workers over one process, alternating."""
    one, ratios = rounds.subjects["send_otp_spread"], []
    with environment.server("pulsa", database, PULSA_WORKERS="2") as supervised:
        pair = Subject(supervised, SEND_OTP, spread_sends, environment.token)
        for _ in range(count):
            both = pair.run(seconds, connections=_WORKER_CONNECTIONS).per_second
            ratios.append(both / one.run(seconds, connections=_WORKER_CONNECTIONS).per_second)
    return {
        "per_second": statistics.median(pair.per_second),
        "ratio_of_two_to_one": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }
