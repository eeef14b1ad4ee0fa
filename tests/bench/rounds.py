"""Throughput in alternating rounds: each figure is compared with an empty call of the same moment, as rates vary."""

import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from server.postgres import embedded
from tests.bench.calls import GET_BALANCE, SEND_OTP, VERIFY_OTP, Bodies, balances, sends, spread_sends, verifies
from tests.bench.connection import Target
from tests.bench.environment import BenchmarkEnvironment, Server
from tests.bench.load import CONNECTIONS, WARM_SECONDS, Outcome, drive
from tests.bench.serve import EMPTY_PATH

MAIN = "main"
_SPARE = 1.6  # bodies created for each that the last round used
_LEAST_PER_SECOND = 6000.0  # lower bound of the expected rate, as the last round may have been slow
_SETTLE_SECONDS = 10.0


@dataclass(slots=True)
class Subject:
    """A method to measure, and the results of its rounds."""

    server: Server
    path: str
    bodies: Bodies
    token: str
    wait_for_outcomes: Callable[[], float] | None = None
    """Waits until the outcomes of its calls are recorded; returns the seconds waited."""
    outcomes: list[Outcome] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    """The server's share of one core."""
    cpu_us: list[float] = field(default_factory=list)
    """Processor time of the server per call, its outcome included: steadier than rates on a shared machine."""
    outcome_lags: list[float] = field(default_factory=list)

    expected_per_second: float = 0.0

    def warm(self) -> None:
        """Run it without counting, so that no round includes the slower first calls."""
        self._drive(0.7, CONNECTIONS)

    def run(self, seconds: float, *, connections: int = CONNECTIONS) -> Outcome:
        """One round. Raises RuntimeError when a call did not end with OK, or none ended at all."""
        cpu, began = cpu_seconds(self.server.pid), time.perf_counter()
        outcome = self._drive(seconds + WARM_SECONDS, connections)
        self.server_cpu.append((cpu_seconds(self.server.pid) - cpu) / (time.perf_counter() - began))
        if not outcome.latencies:
            raise RuntimeError(f"{self.path}: no call was answered in {seconds} s; is the machine busy?")
        self.outcomes.append(outcome)
        if self.wait_for_outcomes:
            self.outcome_lags.append(self.wait_for_outcomes())
        self.cpu_us.append((cpu_seconds(self.server.pid) - cpu) / outcome.statuses.total() * 1e6)
        return outcome

    def _drive(self, seconds: float, connections: int) -> Outcome:
        target = Target(self.server.port, self.path, self.token)
        bodies = self.bodies(int(max(self.expected_per_second * _SPARE, _LEAST_PER_SECOND) * seconds))
        outcome = drive(target, bodies, seconds=seconds, connections=connections)
        if set(outcome.statuses) != {"0"}:
            raise RuntimeError(f"{self.path}: calls ended with grpc-status {dict(outcome.statuses)}")
        self.expected_per_second = outcome.per_second
        return outcome

    @property
    def per_second(self) -> list[float]:
        """The rate of each round."""
        return [outcome.per_second for outcome in self.outcomes]


@dataclass(frozen=True, slots=True)
class Rounds:
    """The figures of all rounds: the n-th entry of each list belongs to round n."""

    empty: Subject
    empty_pinned: Subject
    """The empty call with gRPC's polling thread pinned: see pinned_polling_thread in server/api/server.py."""
    subjects: Mapping[str, Subject]
    plain: Mapping[str, Subject]
    bare_per_second: list[float] = field(default_factory=list)
    empty_per_second: dict[str, list[float]] = field(default_factory=dict)
    """By subject, the mean of the empty call's rate right before and right after it."""
    pinned_ratios: list[float] = field(default_factory=list)
    """Of `empty_pinned` to the empty call right before."""

    def ratios_to_empty(self, name: str) -> list[float]:
        """The subject's rate over that of the empty call of the same moment."""
        return _ratios(self.subjects[name].per_second, self.empty_per_second[name])

    def ratios_to_plain(self, name: str) -> list[float]:
        """The subject's rate over that of one transaction of plain statements per call."""
        return _ratios(self.subjects[name].per_second, self.plain[_plain_of(name)].per_second)


def prepare_rounds(
    environment: BenchmarkEnvironment, *, pulsa: Server, plain: Server, empty: Server, empty_pinned: Server
) -> Rounds:
    """The subjects, each warmed up."""
    database_url = environment.database_url(MAIN)

    def subject(server: Server, path: str, bodies: Bodies, *, has_outcomes: bool = False) -> Subject:
        wait_for_outcomes = (lambda: _outbox_lag(database_url)) if has_outcomes else None
        return Subject(server, path, bodies, environment.token, wait_for_outcomes)

    rounds = Rounds(
        empty=subject(empty, EMPTY_PATH, lambda count: sends("hot")(1) * count),
        empty_pinned=subject(empty_pinned, EMPTY_PATH, lambda count: sends("hot")(1) * count),
        subjects={
            "send_otp_hot": subject(pulsa, SEND_OTP, sends("hot"), has_outcomes=True),
            "send_otp_spread": subject(pulsa, SEND_OTP, spread_sends, has_outcomes=True),
            "verify_otp": subject(pulsa, VERIFY_OTP, verifies(database_url)),
            "get_balance": subject(pulsa, GET_BALANCE, balances),
        },
        plain={
            "send_otp": subject(plain, SEND_OTP, sends("plain"), has_outcomes=True),
            "verify_otp": subject(plain, VERIFY_OTP, verifies(database_url)),
            "get_balance": subject(plain, GET_BALANCE, balances),
        },
    )
    for each in (rounds.empty, rounds.empty_pinned, *rounds.subjects.values(), *rounds.plain.values()):
        each.warm()
    return rounds


def run_round(rounds: Rounds, *, seconds: float, bare: Callable[[float], float]) -> None:
    """One round: the empty call, a subject, the empty call, the next subject, …, then the baselines."""
    before = rounds.empty.run(seconds / 2).per_second
    for name, subject in rounds.subjects.items():
        subject.run(seconds)
        after = rounds.empty.run(seconds / 2).per_second
        rounds.empty_per_second.setdefault(name, []).append(statistics.mean([before, after]))
        before = after
    rounds.pinned_ratios.append(rounds.empty_pinned.run(seconds / 2).per_second / before)
    for subject in rounds.plain.values():
        subject.run(seconds)
    rounds.bare_per_second.append(bare(seconds))


def bare_statements(environment: BenchmarkEnvironment, seconds: float) -> float:
    """Sends per second that pgbench reaches with the statements of a plain send, on one account."""
    program = embedded._program("pgbench")
    script = Path(__file__).with_name("bare.sql")
    arguments = ["--no-vacuum", "--protocol=prepared", "--client=8", f"--time={max(1, round(seconds))}"]
    done = subprocess.run(  # noqa: S603 - the package's own program
        [program, *arguments, f"--file={script}", environment.database_url(MAIN)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"pgbench: {done.stderr}")
    with psycopg.connect(
        environment.database_url(MAIN)
    ) as connection:  # pgbench ends its clients in the middle of the script
        connection.execute("DELETE FROM outbox WHERE organization_id = 'bare'")
        connection.execute("UPDATE deliveries SET status = 'SENT' WHERE organization_id = 'bare' AND status = 'QUEUED'")
    return float(found[1])


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far; 0 where there is no /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _outbox_lag(database_url: str) -> float:
    """Wait until every outcome is recorded, at most _SETTLE_SECONDS; returns the seconds waited."""
    began = time.perf_counter()
    with psycopg.connect(database_url, autocommit=True) as connection:
        while time.perf_counter() - began < _SETTLE_SECONDS:
            if connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,):
                break
            time.sleep(0.02)
    return time.perf_counter() - began


def _plain_of(name: str) -> str:
    return "send_otp" if name.startswith("send_otp") else name


def _ratios(figures: Sequence[float], others: Sequence[float]) -> list[float]:
    return [figure / other for figure, other in zip(figures, others, strict=True)]
