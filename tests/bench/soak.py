"""`make soak`: an hour at half of the maximum, with faults; writes build/soak.json, from which plot.py draws.

Two replicas share a database. The first serves two thirds of the time and is never killed, so that its memory shows a
leak; the second serves the rest, and is killed and restarted. Every minute one fault, drawn at random.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from server.credits.audit import audit_all
from server.postgres.pool import Timeouts, open_pool
from tests.bench.calls import SEND_OTP, spread_sends
from tests.bench.connection import Target
from tests.bench.environment import BenchmarkEnvironment, Server, benchmark_environment, create_database
from tests.bench.load import drive

_DATABASE: Final = "soak"
_SEGMENT_SECONDS: Final = 30.0
_TABLES: Final = ("accounts", "ledger_entries", "otps", "deliveries", "outbox", "unverified_credits", "job_leases")
_SEED: Final = 20


@dataclass
class Replica:
    """A server that can be killed and started again."""

    environment: BenchmarkEnvironment
    name: str
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        """Start it, on a new port."""
        starting = self.environment.server("pulsa", _DATABASE, PULSA_METRICS_LISTEN="off")
        self.server: Server = self.stack.enter_context(starting)

    def restart(self) -> None:
        """Kill it, as kill -9 does, and start it again."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.stack.close()
        self.start()

    def freeze(self, seconds: float) -> None:
        """Stop it for some seconds."""
        os.kill(self.server.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.server.pid, signal.SIGCONT)

    @property
    def megabytes(self) -> float:
        """Its resident memory."""
        pages = int(Path(f"/proc/{self.server.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Run, audit, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=Path("build/soak.json"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pulsa-soak-") as name:
        (folder := Path(name)).chmod(0o755)  # PostgreSQL runs as another user when this is root
        with benchmark_environment(folder) as environment, ExitStack() as stack:
            create_database(environment, _DATABASE)
            replicas = [Replica(environment, name) for name in ("first", "second")]
            for replica in replicas:
                replica.start()
                stack.callback(replica.stack.close)
            figures = _run(environment, replicas, arguments.minutes, arguments.output)
            stack.close()
            figures["audit"] = asyncio.run(_audit(environment))
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


def _run(environment: BenchmarkEnvironment, replicas: list[Replica], minutes: float, output: Path) -> dict[str, object]:
    chance = random.Random(_SEED)  # noqa: S311 - for a repeatable draw
    target = Target(replicas[0].server.port, SEND_OTP, environment.token)
    maximum = drive(target, spread_sends(60_000), seconds=10.0).per_second
    rate, samples = maximum / 2, [_sample(environment, replicas, 0.0)]
    faults: list[dict[str, object]] = []
    figures: dict[str, object] = {"maximum": maximum, "rate": rate, "samples": samples, "faults": faults}
    began, number = time.monotonic(), 0
    while (passed := time.monotonic() - began) < 60 * minutes:
        serving = replicas[number % 3 == 2]
        with _one_fault(environment, serving, replicas, chance) if number % 2 else ExitStack() as fault:
            outcome = _drive(serving, environment, rate)
        if number % 2:
            faults.append({"seconds": passed, "kind": fault})
        samples.append(_sample(environment, replicas, time.monotonic() - began) | outcome)
        output.write_text(json.dumps(figures, indent=1) + "\n")
        print(json.dumps(samples[-1]), flush=True)  # noqa: T201 - shows the progress
        number += 1
    return figures


def _drive(replica: Replica, environment: BenchmarkEnvironment, rate: float) -> dict[str, object]:
    """Send for a while; a killed server ends that early."""
    target = Target(replica.server.port, SEND_OTP, environment.token)
    try:
        outcome = drive(target, spread_sends(int(rate * _SEGMENT_SECONDS)), seconds=_SEGMENT_SECONDS, per_second=rate)
    except (OSError, TimeoutError, EOFError) as error:
        return {"interrupted": type(error).__name__}
    return {
        "p50_ms": outcome.percentile_ms(50),
        "p99_ms": outcome.percentile_ms(99),
        "ok": outcome.statuses["0"],
        "failed": outcome.statuses.total() - outcome.statuses["0"],
    }


@contextmanager
def _one_fault(
    environment: BenchmarkEnvironment, serving: Replica, replicas: list[Replica], chance: random.Random
) -> Iterator[str]:
    """Let one fault happen while the block runs."""
    kinds: dict[str, Callable[[], object]] = {
        "freeze": lambda: serving.freeze(chance.uniform(0.2, 3.0)),
        "backends terminated": lambda: _execute(
            environment,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'soak' AND pid <> pg_backend_pid()",
        ),
        "second killed": replicas[1].restart,
    }
    kind = chance.choice(sorted(kinds))
    timer = threading.Timer(chance.uniform(2, 10), kinds[kind])
    timer.start()
    yield kind
    timer.join()


def _execute(environment: BenchmarkEnvironment, query: str, *parameters: object) -> list[tuple[float, ...]]:
    with psycopg.connect(environment.database_url(_DATABASE), autocommit=True) as connection:
        return connection.execute(query.encode(), parameters).fetchall()


def _sample(environment: BenchmarkEnvironment, replicas: list[Replica], seconds: float) -> dict[str, object]:
    ((connections, sends, waiting),) = _execute(
        environment,
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = 'soak' AND pid <> pg_backend_pid()),"
        " (SELECT sum(last_sequence) - count(*) FROM accounts)::float, (SELECT count(*) FROM outbox)",
    )
    sizes = _execute(
        environment,
        "SELECT (SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(name::regclass))::float"
        " FROM unnest(%s::text[]) WITH ORDINALITY AS tables (name, number) ORDER BY number",
        list(_TABLES),
    )
    return {
        "seconds": seconds,
        "megabytes": {replica.name: replica.megabytes for replica in replicas},
        "connections": connections,
        "sends": sends,
        "outbox": waiting,
        "bytes": {table: size for table, (size,) in zip(_TABLES, sizes, strict=True)},
    }


async def _audit(environment: BenchmarkEnvironment) -> dict[str, object]:
    with psycopg.connect(environment.database_url(_DATABASE), autocommit=True) as connection:
        connection.execute("ANALYZE")
    timeouts = Timeouts(connection=30, transaction=900, job=900)
    pool = await open_pool(environment.database_url(_DATABASE), size=2, timeouts=timeouts)
    try:
        found = await audit_all(pool)
    finally:
        await pool.close()
    return {"holds": found.holds, "entries": found.entry_count, "findings": [str(one) for one in found.findings[:5]]}


if __name__ == "__main__":
    main()
