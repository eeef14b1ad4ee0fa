"""`make bench`: measures the server and its baselines in one run; prints a table and writes build/bench.json."""

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
from server.postgres.conninfo import Timeouts
from server.postgres.pool import open_pool
from tests.bench import batches, growth, peers, report
from tests.bench.calls import store_otps
from tests.bench.environment import FILLING, POSTGRES, BenchmarkEnvironment, benchmark_environment, create_database
from tests.bench.latency import half_load, idle_latency, overload
from tests.bench.rounds import MAIN, Rounds, bare_statements, prepare_rounds, run_round

_RETENTION = timedelta(days=79)  # growth.fill creates the deliveries of 80 days
_VERIFIED_IN_A_ROUND = 30_000  # at most


@dataclass(frozen=True, slots=True)
class Plan:
    """The extent of a run."""

    rounds: int
    seconds: float
    """Duration of each measurement in a round."""
    growth: bool
    workers: bool
    batches: bool


FULL = Plan(rounds=5, seconds=3.0, growth=True, workers=True, batches=True)
QUICK = Plan(rounds=1, seconds=1.0, growth=False, workers=False, batches=False)


def main() -> None:
    """Measure, audit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no growth, no workers, no batches")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--pgledger", type=Path, help="a checkout of pgledger; it is left out without one")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pulsa-bench-") as folder:
        figures = _measure(Path(folder), QUICK if arguments.quick else FULL, arguments.pgledger)
    figures["seconds"] = round(time.monotonic() - began)
    report.write(figures, arguments.output)
    print(report.table(figures))  # noqa: T201 - a command that talks to a terminal
    for name in ("batches", "peers"):
        if isinstance(found := figures.get(name), dict):
            print(batches.table(found))  # noqa: T201


def _measure(folder: Path, plan: Plan, pgledger: Path | None) -> dict[str, object]:
    folder.chmod(0o755)  # PostgreSQL runs as another user when this is root
    databases = [MAIN, *([growth.SMALL, growth.LARGE] if plan.growth else [])]
    with _reported_step("filling the tables"), benchmark_environment(folder, FILLING) as filling:
        for database in databases:
            create_database(filling, database)
        store_otps(filling.database_url(MAIN), (plan.rounds + 1) * _VERIFIED_IN_A_ROUND)
        if plan.growth:
            growth.fill(filling, growth.SMALL, growth.SMALL_ENTRIES)
            growth.fill(filling, growth.LARGE, growth.LARGE_ENTRIES)
    with benchmark_environment(folder, POSTGRES) as environment:
        figures = report.conditions(environment) | _figures(environment, plan)
        if plan.batches:
            with _reported_step("batches"):
                figures["batches"] = batches.measure(environment, rounds=plan.rounds, seconds=plan.seconds)
            with _reported_step("other ledgers"):
                figures["peers"] = peers.measure(
                    environment, rounds=plan.rounds, seconds=plan.seconds, pgledger=pgledger
                )
        with _reported_step("auditing every ledger"):
            figures["audit"] = {database: asyncio.run(_audit(environment, database)) for database in databases}
        return figures


def _figures(environment: BenchmarkEnvironment, plan: Plan) -> dict[str, object]:
    figures: dict[str, object] = {}
    with ExitStack() as servers:
        start = partial(environment.server, database=MAIN, PULSA_METRICS_LISTEN="off")
        kinds = {"pulsa": "pulsa", "plain": "plain", "empty": "empty", "empty_pinned": "beside"}
        started = {name: servers.enter_context(start(kind)) for name, kind in kinds.items()}
        with _reported_step("warming up"):
            rounds = prepare_rounds(environment, **started)
        for number in range(plan.rounds):
            with _reported_step(f"throughput, round {number + 1} of {plan.rounds}"):
                run_round(rounds, seconds=plan.seconds, bare=partial(bare_statements, environment))
        figures |= report.throughput(rounds)
        figures |= _latencies(environment, rounds, plan)
        if plan.workers:
            with _reported_step("two workers"):
                figures["workers"] = growth.workers(environment, rounds, MAIN, count=plan.rounds, seconds=plan.seconds)
    if plan.growth:
        with _reported_step("growth"):
            figures["growth"] = growth.growth(environment, count=plan.rounds, seconds=plan.seconds)
    return figures


def _latencies(environment: BenchmarkEnvironment, rounds: Rounds, plan: Plan) -> dict[str, object]:
    count, seconds = plan.rounds, plan.seconds
    with _reported_step("a single caller"):
        idle = idle_latency(environment, rounds, count=count, seconds=seconds)
    with _reported_step("half of the maximum"):
        half = half_load(environment, rounds, count=count, seconds=seconds + 1)
    with _reported_step("three times the maximum"):
        over = overload(environment, rounds, count=count, seconds=seconds + 1)
    return {"idle_latency": idle, "half_load": half, "overload": over}


async def _audit(environment: BenchmarkEnvironment, database: str) -> dict[str, object]:
    """Raises RuntimeError when a ledger does not hold: figures of a server with wrong balances are void."""
    with psycopg.connect(environment.database_url(database), autocommit=True) as connection:
        connection.execute("ANALYZE")  # the audit's joins are planned by the tables' current statistics
    pool = await open_pool(
        environment.database_url(database), size=2, timeouts=Timeouts(connection=30, transaction=300)
    )
    try:
        found = await audit_all(pool, deliveries_kept=_RETENTION)
    finally:
        await pool.close()
    if not found.holds:
        raise RuntimeError(f"the audit of {database} found {found.findings[:5]}")
    return {"holds": found.holds, "organizations": found.organization_count, "entries": found.entry_count}


@contextmanager
def _reported_step(step: str) -> Iterator[None]:
    """Print the step and its duration."""
    began = time.monotonic()
    print(f"  {step} …", end="", flush=True)  # noqa: T201
    yield
    print(f" {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
