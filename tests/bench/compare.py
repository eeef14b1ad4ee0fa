"""`python -m tests.bench.compare --base BASE`: what a call costs the processor here, beside what it costs in BASE.

Both servers are alive at once, each with a database of its own, and are driven one after the other; which is first
changes with every round. What counts is the ratio of the two within a round, as machines have moods.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import get_context
from pathlib import Path

import psycopg

from tests.bench import calls
from tests.bench.connection import Target
from tests.bench.environment import ROOT, BenchmarkEnvironment, Server, benchmark_environment, fund_accounts
from tests.bench.load import CALLS_AT_ONCE, WARM_SECONDS, drive
from tests.bench.processes import backend_seconds, process_seconds

Comparisons = Mapping[str, Mapping[str, "Comparison"]]  # by the subject's name and the figure's
THIS, BASE = "this", "base"
_MOST_PER_SECOND = 10_000  # for which there are bodies: a faster server ends its round earlier
_WARMING_SECONDS = 0.7
_BATCH, _BATCHES_AT_ONCE = 100, 8
_UNIMPLEMENTED = "12"
_SETTLE_SECONDS = 10.0
_LEAST = 0.01  # what a figure of 0 is taken for, which has no logarithm
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t for two-sided 95 %, by degrees of freedom from 1. The last serves for more: theirs are smaller."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A call to measure."""

    path: str
    bodies: Callable[[str], calls.Bodies]  # by the URL of the database
    calls_at_once: int = CALLS_AT_ONCE
    size: int = 1
    """Sends per call: the figures are per send."""


SUBJECTS: Mapping[str, Subject] = {
    "send_otp_hot": Subject(calls.SEND_OTP, lambda _: calls.sends("hot")),
    "send_otp_spread": Subject(calls.SEND_OTP, lambda _: calls.spread_sends),
    "verify_otp": Subject(calls.VERIFY_OTP, calls.verifies),
    "get_balance": Subject(calls.GET_BALANCE, lambda _: calls.balances),
    "batch_of_100": Subject(
        calls.BATCH_SEND_OTPS, lambda _: calls.batches("hot", _BATCH), calls_at_once=_BATCHES_AT_ONCE, size=_BATCH
    ),
    "lone_send_otp": Subject(calls.SEND_OTP, lambda _: calls.sends("hot"), calls_at_once=1),
}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two checkouts, with its database."""

    name: str  # the database's too
    root: Path
    bench: BenchmarkEnvironment
    more: Mapping[str, str] = field(default_factory=dict)
    """Further settings."""

    @property
    def database_url(self) -> str:
        """As the schema's owner."""
        return self.bench.database_url(self.name)

    @property
    def settings(self) -> dict[str, str]:
        """What its processes need beyond BenchmarkEnvironment.settings. PYTHONPATH comes before what .venv says."""
        return {
            "PYTHONPATH": f"{self.root}{os.pathsep}{self.root / 'clients/python'}",
            "PULSA_METRICS_LISTEN": "off",
            **self.more,
        }

    def manage(self, command: str) -> None:
        """Run `python -m server COMMAND` of the checkout. Raises CalledProcessError when it fails."""
        environment = os.environ | self.bench.settings(self.name) | self.settings
        arguments = [sys.executable, "-m", "server", command]
        subprocess.run(arguments, env=environment, cwd=self.root, stdout=sys.stderr, check=True)  # noqa: S603

    def create_database(self) -> None:
        """Its schema is the checkout's own, and its organizations have credits."""
        with psycopg.connect(self.bench.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.name}".encode())
        self.manage("migrate")
        fund_accounts(self.database_url)

    def enable_events(self) -> None:
        """Every organization has events."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO event_streams (organization_id, is_on, expired_until, change_time)"
                " SELECT organization_id, true, now(), now() FROM accounts"
            )
            connection.execute("VACUUM ANALYZE event_streams")

    def audit(self) -> None:
        """The checkout's own. Raises CalledProcessError when a ledger does not hold."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("ANALYZE")  # the audit's joins are planned by what the tables hold now
        self.manage("audit")


@dataclass(frozen=True, slots=True)
class Running:
    """The server of a side, while it listens."""

    side: Side
    server: Server
    monitor: psycopg.Connection[tuple[int]]  # to the side's database, left out of what PostgreSQL used

    def measure(self, subject: Subject, seconds: float) -> dict[str, float]:
        """One run of load: its figures per call. Raises RuntimeError when a call did not end with OK."""
        bodies = subject.bodies(self.side.database_url)(int(_MOST_PER_SECOND * seconds / subject.size))
        target = Target(self.server.port, subject.path, self.side.bench.token)
        server, backends, wal = process_seconds(self.server.pid), backend_seconds(self.monitor), self._wal_bytes()
        outcome = drive(target, bodies, seconds=seconds, calls_at_once=subject.calls_at_once)
        if set(outcome.statuses) != {"0"}:
            raise RuntimeError(f"{self.side.name} {subject.path}: calls ended with {dict(outcome.statuses)}")
        self._settle()
        server = process_seconds(self.server.pid) - server
        postgres = sum(used - backends.get(pid, 0.0) for pid, used in backend_seconds(self.monitor).items())
        count = outcome.statuses.total() * subject.size
        figures = {
            "server_us": server / count * 1e6,
            "postgres_us": postgres / count * 1e6,
            "wal_bytes": (self._wal_bytes() - wal) / count,
            "per_second": outcome.per_second * subject.size,
        }
        return figures | ({"p50_ms": outcome.percentile_ms(50)} if subject.calls_at_once == 1 else {})

    def serves(self, subject: Subject) -> bool:
        """Whether the checkout has the rpc."""
        target = Target(self.server.port, subject.path, self.side.bench.token)
        served = _UNIMPLEMENTED not in drive(target, [b""], seconds=_WARMING_SECONDS, calls_at_once=1).statuses
        if not served:
            print(f"{subject.path} is left out, as {self.side.name} lacks it", file=sys.stderr)  # noqa: T201
        return served

    def _wal_bytes(self) -> int:
        """What PostgreSQL has written to its log so far. The other side's server is idle, but for its periodic jobs."""
        ((written,),) = self.monitor.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchall()
        return written

    def _settle(self) -> None:
        """Wait until every outcome is recorded, so that the work that the calls left behind is counted too."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self.monitor.execute("SELECT 1 FROM outbox LIMIT 1").fetchone():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.side.name}: the outbox was not empty after {_SETTLE_SECONDS:.0f} s")
            time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of a subject; each list has a value of each round."""

    this: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)

    @property
    def _logarithms(self) -> list[float]:
        this, base = ([math.log(max(value, _LEAST)) for value in values] for values in (self.this, self.base))
        return [each - other for each, other in zip(this, base, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return math.exp(statistics.median(self._logarithms))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the ratios' geometric mean: Student's for paired values."""
        logarithms, freedom = self._logarithms, len(self.this) - 1
        error = statistics.stdev(logarithms) / math.sqrt(len(logarithms))
        mean, reach = statistics.mean(logarithms), error * _T_975[min(freedom, len(_T_975)) - 1]
        return math.exp(mean - reach), math.exp(mean + reach)

    def figures(self) -> dict[str, object]:
        """For JSON."""
        return {"ratio": self.ratio, "interval": self.interval, "this": self.this, "base": self.base}


def main() -> int:
    """Compare, audit, print and write; 1 when a limit is exceeded."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="pulsa-compare-") as name:
        (folder := Path(name)).chmod(0o755)  # PostgreSQL runs as another user when this is root
        with (
            _checkout(arguments.base, folder / "checkout") as base,
            benchmark_environment(folder) as bench,
            _collector() as collector,
        ):
            traces = {"PULSA_TRACES_ENDPOINT": collector, "PULSA_TRACES_RATIO": str(arguments.traces)}
            sides = [Side(THIS, ROOT, bench, traces if arguments.traces else {}), Side(BASE, base, bench)]
            for side in sides:
                side.create_database()
            if arguments.events:
                sides[0].enable_events()
            comparisons = _compare(
                sides, rounds=arguments.rounds, seconds=arguments.seconds, names=arguments.subject or SUBJECTS
            )
    exceeded = _exceeded(comparisons, dict(arguments.limit))
    print(_table(comparisons, arguments.rounds), *exceeded, sep="\n")  # noqa: T201 - a command that talks to a terminal
    if arguments.output:
        figures = {"base": arguments.base, "seconds": arguments.seconds, "subjects": comparisons}
        arguments.output.write_text(json.dumps(figures, default=Comparison.figures, indent=2) + "\n")
    return 1 if exceeded else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, metavar="DIR_OR_REF", help="a checkout's folder, or what git calls it")
    parser.add_argument("--rounds", type=int, default=9, help="2 at least (default: 9)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    parser.add_argument("--output", type=Path, help="write the figures there as JSON")
    parser.add_argument("--subject", choices=SUBJECTS, action="append", help="measure only these calls")
    parser.add_argument("--events", action="store_true", help="every organization has events here, and none in BASE")
    parser.add_argument(
        "--traces", type=float, metavar="RATIO", help="this share of calls is traced here, none in BASE"
    )
    explanation = f"fail when the interval of the server's CPU ends above; NAME is one of {', '.join(SUBJECTS)}"
    parser.add_argument("--limit", type=_limit, action="append", default=[], metavar="NAME=RATIO", help=explanation)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: one round has no interval")
    return arguments


def _limit(text: str) -> tuple[str, float]:
    name, _, ratio = text.partition("=")
    if name not in SUBJECTS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(SUBJECTS)}")
    return name, float(ratio)


class _Taker(BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(HTTPStatus.OK)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def _collector() -> Iterator[str]:
    """A collector of traces while the block runs: its URL. Its process is another one, as this one makes the load."""
    with HTTPServer(("127.0.0.1", 0), _Taker) as server:
        process = get_context("fork").Process(target=server.serve_forever, daemon=True)
        process.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
        process.terminate()


@contextmanager
def _checkout(base: str, folder: Path) -> Iterator[Path]:
    """The folder that `base` names, or a worktree of the git ref while the block runs."""
    if Path(base).is_dir():
        yield Path(base).resolve()
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), base], check=True)  # noqa: S603
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)  # noqa: S603


def _compare(sides: Sequence[Side], *, rounds: int, seconds: float, names: Collection[str]) -> Comparisons:
    seconds += WARM_SECONDS  # which `drive` leaves out of the rate
    verified = int(_MOST_PER_SECOND * (rounds * seconds + _WARMING_SECONDS))
    subjects = {
        name: subject
        for name, subject in SUBJECTS.items()
        if name in names and (name != "verify_otp" or _stock(sides, verified))
    }
    comparisons: dict[str, dict[str, Comparison]] = {name: {} for name in subjects}
    with ExitStack() as servers:
        pair = [servers.enter_context(_running(side)) for side in sides]
        for name, subject in list(subjects.items()):
            if not all(running.serves(subject) for running in pair):
                del subjects[name], comparisons[name]
                continue
            for running in pair:
                running.measure(subject, _WARMING_SECONDS)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)  # noqa: T201 - beside the table
            for name, subject in subjects.items():
                measured = {running.side.name: running.measure(subject, seconds) for running in pair}
                for figure, value in measured[THIS].items():
                    comparison = comparisons[name].setdefault(figure, Comparison())
                    comparison.this.append(value)
                    comparison.base.append(measured[BASE][figure])
            pair.reverse()
    for side in sides:
        side.audit()
    return comparisons


def _stock(sides: Sequence[Side], count: int) -> bool:
    """Stock both databases with OTPs that this checkout's code can verify; False, with a note, when it can't."""
    try:
        for side in sides:
            calls.store_otps(side.database_url, count)
            calls.verifies(side.database_url)(1)
    except (psycopg.errors.UndefinedColumn, psycopg.errors.NotNullViolation) as error:
        print(f"verify_otp is left out, as {side.name} has another schema: {error}", file=sys.stderr)  # noqa: T201
        return False
    return True


@contextmanager
def _running(side: Side) -> Iterator[Running]:
    with (
        side.bench.server("pulsa", side.name, root=side.root, **side.settings) as server,
        psycopg.connect(side.database_url, autocommit=True) as monitor,
    ):
        yield Running(side, server, monitor)


def _table(comparisons: Comparisons, rounds: int) -> str:
    lines = [f"{'medians of ' + str(rounds) + ' rounds':28}{'this':>10}{'base':>10}{'this/base':>11}   95 % interval"]
    for name, figures in comparisons.items():
        for figure, compared in figures.items():
            this, base = statistics.median(compared.this), statistics.median(compared.base)
            interval = " to ".join(f"{end:.3f}" for end in compared.interval)
            lines.append(f"{name:16}{figure:12}{this:10.2f}{base:10.2f}{compared.ratio:11.3f}   {interval}")
    return "\n".join(lines)


def _exceeded(comparisons: Comparisons, limits: Mapping[str, float]) -> list[str]:
    """A sentence for each limit that was not shown to hold, be it that the subject was left out."""
    return [
        f"{name}: the server's CPU was not shown to be at most {limit} of the base's"
        for name, limit in limits.items()
        if name not in comparisons or comparisons[name]["server_us"].interval[1] > limit
    ]


if __name__ == "__main__":
    sys.exit(main())
