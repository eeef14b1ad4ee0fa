"""`make bench`: measures the server beside what could be, in one run; prints a table and writes build/bench.json."""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import psycopg

from server.credits.audit import audit_all
from server.database.pool import open_pool
from tests.bench import growth, report
from tests.bench.calls import stock_otps
from tests.bench.latency import half_load, idle_latency, overload
from tests.bench.rounds import MAIN, Rounds, bare_statements, prepare_rounds, run_round
from tests.bench.stage import FILLING, POSTGRES, Stage, create_database, stage

_RETENTION = timedelta(days=79)  # growth.fill keeps the deliveries of 80 days
_VERIFIED_IN_A_ROUND = 30_000  # at most


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    rounds: int
    seconds: float
    """Of each measurement in a round."""
    growth: bool
    workers: bool


FULL = Plan(rounds=5, seconds=3.0, growth=True, workers=True)
QUICK = Plan(rounds=1, seconds=1.0, growth=False, workers=False)


def main() -> None:
    """Measure, audit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no growth, no workers")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pulsa-bench-") as folder:
        figures = _measure(Path(folder), QUICK if arguments.quick else FULL)
    figures["seconds"] = round(time.monotonic() - began)
    report.write(figures, arguments.output)
    print(report.table(figures))  # noqa: T201 - a command that talks to a terminal


def _measure(folder: Path, plan: Plan) -> dict[str, object]:
    folder.chmod(0o755)  # PostgreSQL runs as another user when this is root
    databases = [MAIN, *([growth.SMALL, growth.LARGE] if plan.growth else [])]
    with _told("filling the tables"), stage(folder, FILLING) as filled:
        for database in databases:
            create_database(filled, database)
        stock_otps(filled.database_url(MAIN), (plan.rounds + 1) * _VERIFIED_IN_A_ROUND)
        if plan.growth:
            growth.fill(filled, growth.SMALL, growth.SMALL_ENTRIES)
            growth.fill(filled, growth.LARGE, growth.LARGE_ENTRIES)
    with stage(folder, POSTGRES) as set_stage:
        figures = report.circumstances(set_stage) | _figures(set_stage, plan)
        with _told("auditing every ledger"):
            figures["audit"] = {database: asyncio.run(_audit(set_stage, database)) for database in databases}
        return figures


def _figures(set_stage: Stage, plan: Plan) -> dict[str, object]:
    figures: dict[str, object] = {}
    with ExitStack() as servers:
        start = partial(set_stage.server, database=MAIN, PULSA_METRICS_LISTEN="off")
        kinds = ("pulsa", "plain", "empty", "beside")
        started = {kind: servers.enter_context(start(kind)) for kind in kinds}
        with _told("warming up"):
            rounds = prepare_rounds(set_stage, **started)
        for number in range(plan.rounds):
            with _told(f"throughput, round {number + 1} of {plan.rounds}"):
                run_round(rounds, seconds=plan.seconds, bare=partial(bare_statements, set_stage))
        figures |= report.throughput(rounds)
        figures |= _latencies(set_stage, rounds, plan)
        if plan.workers:
            with _told("two workers"):
                figures["workers"] = growth.workers(set_stage, rounds, MAIN, count=plan.rounds, seconds=plan.seconds)
    if plan.growth:
        with _told("growth"):
            figures["growth"] = growth.growth(set_stage, count=plan.rounds, seconds=plan.seconds)
    return figures


def _latencies(set_stage: Stage, rounds: Rounds, plan: Plan) -> dict[str, object]:
    count, seconds = plan.rounds, plan.seconds
    with _told("one caller alone"):
        idle = idle_latency(set_stage, rounds, count=count, seconds=seconds)
    with _told("half of the maximum"):
        half = half_load(set_stage, rounds, count=count, seconds=seconds + 1)
    with _told("three times the maximum"):
        over = overload(set_stage, rounds, count=count, seconds=seconds + 1)
    return {"idle_latency": idle, "half_load": half, "overload": over}


async def _audit(set_stage: Stage, database: str) -> dict[str, object]:
    """Raises RuntimeError when a ledger does not hold: figures of a server that lost count are worth nothing."""
    with psycopg.connect(set_stage.database_url(database), autocommit=True) as connection:
        connection.execute("ANALYZE")  # the audit's joins are planned by what the tables hold now
    pool = await open_pool(set_stage.database_url(database), size=2, timeout_seconds=30)
    try:
        found = await audit_all(pool, deliveries_kept=_RETENTION)
    finally:
        await pool.close()
    if not found.holds:
        raise RuntimeError(f"the audit of {database} found {found.findings[:5]}")
    return {"holds": found.holds, "organizations": found.organization_count, "entries": found.entry_count}


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what is going on, and how long it took."""
    began = time.monotonic()
    print(f"  {what} …", end="", flush=True)  # noqa: T201
    yield
    print(f" {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
