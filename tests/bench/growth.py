"""Whether sends stay as fast when the tables are large, and whether a second worker helps."""

import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg

from server.database.queries import load_queries
from tests.bench.calls import SEND_OTP, spread_sends
from tests.bench.rounds import Rounds, Subject
from tests.bench.stage import SPREAD, Server, Stage

SMALL, LARGE = "small", "large"
SMALL_ENTRIES, LARGE_ENTRIES = 10_000, 10_000_000
_WORKER_CONNECTIONS = 32  # the kernel deals connections out to workers: with many, about evenly

SQL = load_queries(__file__)
_INSERTS = {name.removeprefix("insert_"): query for name, query in SQL if name.startswith("insert_")}

Figures = Mapping[str, object]


def fill(stage: Stage, database: str, entries: int) -> None:
    """Add this many sends to the spread organizations, as they would have come in turn over the last 400 days.

    The ledger is for ever; OTPs and deliveries are kept for 90 days, so the last fifth of the sends have theirs.
    """
    database_url = stage.database_url(database)
    parameters = {
        "entries": entries,
        "first_kept": entries - entries // 5,
        "organizations": SPREAD,
        "until": time.time(),
        "tables": list(_INSERTS),
    }
    with psycopg.connect(database_url, autocommit=True) as connection:
        indexes = connection.execute(SQL.find_indexes.encode(), parameters).fetchall()
        for _, drop, _ in indexes:
            connection.execute(drop)
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
        for statement in (SQL.drop_sends, SQL.write_balances, "VACUUM (ANALYZE, FREEZE)", "CHECKPOINT"):
            connection.execute(statement.encode(), parameters)


def _fill_table(database_url: str, insert: str, parameters: Mapping[str, object], indexes: Sequence[str]) -> None:
    """Indexes are built when the rows are in: that takes a fraction of the time."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(insert.encode(), parameters)
        for create in indexes:
            connection.execute(create.encode())


def growth(stage: Stage, *, count: int, seconds: float) -> Figures:
    """SendOtp over 10,000 organizations with LARGE_ENTRIES over the same with SMALL_ENTRIES, alternating."""
    with stage.server("pulsa", SMALL) as few, stage.server("pulsa", LARGE) as many:
        small, large = (Subject(server, SEND_OTP, spread_sends, stage.token) for server in (few, many))
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


def workers(stage: Stage, rounds: Rounds, database: str, *, count: int, seconds: float) -> Figures:
    """Two processes on one port over one process, alternating."""
    one, ratios = rounds.subjects["send_otp_spread"], []
    with stage.server("pulsa", database, PULSA_WORKERS="2") as first:
        port = {"PULSA_WORKERS": "2", "PULSA_LISTEN": f"127.0.0.1:{first.port}"}
        with stage.server("pulsa", database, **port) as second:
            pair = Subject(Server(second.pid, second.port), SEND_OTP, spread_sends, stage.token)
            for _ in range(count):
                both = pair.run(seconds, connections=_WORKER_CONNECTIONS).per_second
                ratios.append(both / one.run(seconds, connections=_WORKER_CONNECTIONS).per_second)
    return {
        "per_second": statistics.median(pair.per_second),
        "ratio_of_two_to_one": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }
