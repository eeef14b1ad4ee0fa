"""`python -m tests.bench.batches`: OTPs sent alone and in batches, beside an empty call, in rounds.

A rate is of OTPs whose outcomes are stored. What an OTP costs is what the whole round cost, from its first call until
the outbox is empty: processor time of the server and of PostgreSQL's backends, bytes and fsyncs of its log.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psycopg

from tests.bench import calls
from tests.bench.connection import Target
from tests.bench.environment import BenchmarkEnvironment, Server, benchmark_environment, create_database
from tests.bench.load import CALLS_AT_ONCE, drive
from tests.bench.processes import backend_seconds, server_seconds
from tests.bench.serve import EMPTY_PATH

DATABASE = "batches"
SIZES = (10, 100, 1000)
_BATCHES_AT_ONCE = 4
_LARGEST_MESSAGE = 4 << 20
_OPTIONS = [
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for each caller: the kernel parts connections
]
_MOST_PER_SECOND = {"empty": 16_000, "send_otp": 9000}
_MOST_IN_BATCHES_PER_SECOND = 20_000
_PAUSE_SECONDS = 0.05
_SETTLE_SECONDS = 20.0
_WARMING_SECONDS = 0.7

Figures = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to send, or the empty call, and its figures: a value of each round."""

    server: Server
    prepare: Callable[[float], Callable[[], int]]
    """Prepares calls for so many seconds; the function makes them and returns how many OTPs it were."""
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batches:
    """What the rounds need, and what they found."""

    environment: BenchmarkEnvironment
    monitor: psycopg.Connection[tuple[int]]
    ways: Mapping[str, Way]
    lone_p99_ms: Figures = field(default_factory=dict)
    """Of a lone SendOtp: `alone`, and `beside` full batches of another organization."""

    def run_round(self, seconds: float) -> None:
        """Every way once, and the latency of lone calls."""
        for way in self.ways.values():
            self.measure(way, seconds)
        self._measure_lone_calls(seconds)

    def warm(self) -> None:
        """Run every way without counting."""
        for way in self.ways.values():
            way.prepare(_WARMING_SECONDS)()
        self._settle()

    def measure(self, way: Way, seconds: float) -> None:
        """Add the figures of one round."""
        make_calls = way.prepare(seconds)
        server, backends = server_seconds(way.server.pid), backend_seconds(self.monitor)
        wal, fsyncs, size, began = self._wal_bytes(), self._fsyncs(), self._table_bytes(), time.perf_counter()
        count = make_calls()
        self._settle()
        figures = {
            "per_second": count / (time.perf_counter() - began),
            "server_us": (server_seconds(way.server.pid) - server) / count * 1e6,
            "postgres_us": sum(used - backends.get(pid, 0.0) for pid, used in backend_seconds(self.monitor).items())
            / count
            * 1e6,
            "wal_bytes": (self._wal_bytes() - wal) / count,
            "fsyncs": (self._fsyncs() - fsyncs) / count,
            "table_bytes": (self._table_bytes() - size) / count,
        }
        for name, value in figures.items():
            way.figures.setdefault(name, []).append(value)

    def _measure_lone_calls(self, seconds: float) -> None:
        """The p99 of one caller that waits for each answer, alone and beside batches of another organization."""
        pulsa = self.ways["send_otp"].server
        target = Target(pulsa.port, calls.SEND_OTP, self.environment.token)

        def lone_calls() -> float:
            bodies = calls.spread_sends(int(2000 * seconds))
            return drive(target, bodies, seconds=seconds, calls_at_once=1).percentile_ms(99)

        self.lone_p99_ms.setdefault("alone", []).append(lone_calls())
        with ThreadPoolExecutor(1) as threads:
            batches = threads.submit(self.ways["batch_of_1000"].prepare(seconds + 1))
            self.lone_p99_ms.setdefault("beside", []).append(lone_calls())
            batches.result()
        self._settle()

    def _settle(self) -> None:
        """Wait until every outcome is stored."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self.monitor.execute("SELECT 1 FROM outbox LIMIT 1").fetchone():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the outbox was not empty after {_SETTLE_SECONDS:.0f} s")
            time.sleep(0.01)

    def _number(self, query: str) -> int:
        ((number,),) = self.monitor.execute(query.encode()).fetchall()
        return int(number)

    def _wal_bytes(self) -> int:
        return self._number("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")

    def _fsyncs(self) -> int:
        """Of PostgreSQL's log, by its backends."""
        self.monitor.execute("SELECT pg_stat_clear_snapshot()")
        return self._number("SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io WHERE object = 'wal'")

    def _table_bytes(self) -> int:
        """Of all tables, with their indexes and partitions."""
        return self._number("SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_stat_user_tables")


@contextmanager
def open_batches(environment: BenchmarkEnvironment, database: str = DATABASE) -> Iterator[Batches]:
    """Servers with a database of their own while the block runs."""
    create_database(environment, database)
    with ExitStack() as stack:
        pulsa, empty = (
            stack.enter_context(environment.server(kind, database, PULSA_METRICS_LISTEN="off"))
            for kind in ("pulsa", "empty")
        )
        monitor = stack.enter_context(psycopg.connect(environment.database_url(database), autocommit=True))
        pair = stack.enter_context(environment.server("pulsa", database, PULSA_METRICS_LISTEN="off", PULSA_WORKERS="2"))
        token = environment.token
        ways = {
            "empty": Way(empty, calls_of(empty, EMPTY_PATH, lambda count: calls.sends("hot")(1) * count, token)),
            "send_otp": Way(pulsa, calls_of(pulsa, calls.SEND_OTP, calls.sends("hot"), token)),
            **{f"batch_of_{size}": Way(pulsa, _batches_of(stack, pulsa, size, token)) for size in SIZES},
            "batch_of_1000_by_two_workers": Way(pair, _batches_of(stack, pair, 1000, token)),
        }
        yield Batches(environment, monitor, ways)


def calls_of(server: Server, path: str, bodies: calls.Bodies, token: str) -> Callable[[float], Callable[[], int]]:
    """256 callers at once, each of which calls again as soon as it is answered."""
    most = _MOST_PER_SECOND["empty" if path == EMPTY_PATH else "send_otp"]

    def prepare(seconds: float) -> Callable[[], int]:
        prepared = bodies(int(most * seconds))
        return lambda: drive(Target(server.port, path, token), prepared, seconds=seconds).statuses["0"]

    return prepare


def _batches_of(stack: ExitStack, server: Server, size: int, token: str) -> Callable[[float], Callable[[], int]]:
    """As many requests at once as single calls, or a few calls. Callers wait when the server has no room.

    By grpcio, as batches do not fit into one frame of tests.bench.connection; so few calls cost it little.
    """
    at_once = max(_BATCHES_AT_ONCE, CALLS_AT_ONCE // size)
    channels = [
        stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.port}", options=_OPTIONS)) for _ in range(at_once)
    ]
    metadata = (("authorization", f"Bearer {token}"),)

    def prepare(seconds: float) -> Callable[[], int]:
        prepared = calls.batches("hot", size)(int(_MOST_IN_BATCHES_PER_SECOND * seconds / size) + at_once)
        return lambda: _call_batches(prepared, seconds)

    def _call_batches(prepared: list[bytes], seconds: float) -> int:
        end = time.perf_counter() + seconds

        def send(channel: grpc.Channel) -> int:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(calls.BATCH_SEND_OTPS)
            count = 0
            while time.perf_counter() < end and prepared:
                body = prepared.pop()
                while not _is_taken(call, body):
                    time.sleep(_PAUSE_SECONDS)
                count += size
            return count

        with ThreadPoolExecutor(at_once) as callers:
            return sum(callers.map(send, channels))

    def _is_taken(call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]", body: bytes) -> bool:
        try:
            call(body, metadata=metadata, timeout=_SETTLE_SECONDS)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return False
            raise
        return True

    return prepare


def figures(batches: Batches) -> dict[str, object]:
    """For JSON: medians, least and most of the rounds, and the ratios of each round to its empty call."""
    empty, thousand = batches.ways["empty"].figures, batches.ways["batch_of_1000"].figures
    slopes = {
        name: _line([(size, statistics.median(batches.ways[way].figures[name]) * size) for way, size in _sized()])
        for name in ("server_us", "postgres_us", "wal_bytes", "fsyncs", "table_bytes")
    }
    return {
        "per_otp": {
            name: {figure: spread(values) for figure, values in way.figures.items()}
            for name, way in batches.ways.items()
        },
        "of_an_empty_call": {
            name: {
                figure: spread(_ratios(way.figures[figure], empty[figure])) for figure in ("per_second", "server_us")
            }
            for name, way in batches.ways.items()
        },
        "batch_of_1000_of_send_otp": spread(
            _ratios(thousand["per_second"], batches.ways["send_otp"].figures["per_second"])
        ),
        "per_call": {name: {"fixed": line[0], "per_otp": line[1]} for name, line in slopes.items()},
        "lone_p99_ms": {name: spread(values) for name, values in batches.lone_p99_ms.items()},
        "lone_p99_beside_batches": spread(_ratios(batches.lone_p99_ms["beside"], batches.lone_p99_ms["alone"])),
    }


def _sized() -> Iterator[tuple[str, int]]:
    yield "send_otp", 1
    for size in SIZES:
        yield f"batch_of_{size}", size


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """What a call costs by itself, and what each of its OTPs adds: through the smallest and the largest batch."""
    (_, first), *_, (size, last) = points[1:]
    per_otp = (last - first) / (size - SIZES[0])
    return first - SIZES[0] * per_otp, per_otp


def _ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, the least and the most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(found: Mapping[str, object]) -> str:
    """The figures as text: a median, and in brackets the least and the most of the rounds."""
    return "\n".join(_lines("", found))


def _lines(name: str, found: object) -> Iterator[str]:
    if isinstance(found, dict) and "median" in found:
        yield f"{name:60}{found['median']:12.4g}   ({found['least']:.4g} to {found['most']:.4g})"
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from _lines(f"{name} {key}".strip(), value)
    elif isinstance(found, float):
        yield f"{name:60}{found:12.4g}"


def measure(environment: BenchmarkEnvironment, *, rounds: int, seconds: float) -> dict[str, object]:
    """The figures of so many rounds, with a database and servers of their own."""
    with open_batches(environment) as batches:
        batches.warm()
        for _ in range(rounds):
            batches.run_round(seconds)
        return figures(batches)


def main() -> None:
    """Measure, print and write build/batches.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pulsa-batches-") as name:
        (folder := Path(name)).chmod(0o755)  # PostgreSQL runs as another user when this is root
        with benchmark_environment(folder) as environment:
            found = measure(environment, rounds=arguments.rounds, seconds=arguments.seconds)
    print(table(found))  # noqa: T201 - a command that talks to a terminal
    output = Path("build/batches.json")
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
