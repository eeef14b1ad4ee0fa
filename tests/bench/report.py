"""Output of the figures: build/bench.json and a table."""

import json
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from tests.bench.environment import POSTGRES, BenchmarkEnvironment
from tests.bench.load import CALLS_AT_ONCE, CONNECTIONS
from tests.bench.rounds import Rounds, Subject

_PACKAGES = ("grpcio", "uvloop", "psycopg", "protobuf", "cryptography")
GOALS: Mapping[tuple[str, str], tuple[str, float, float]] = {
    # (key, field): title, limit, goal
    ("send_otp_hot", "ratio_to_empty_call"): ("SendOtp, one organization / empty call", 0.50, 0.75),
    ("send_otp_spread", "ratio_to_empty_call"): ("SendOtp, 10,000 organizations / empty call", 0.50, 0.75),
    ("send_otp_hot", "ratio_to_plain_transactions"): ("SendOtp / plain transactions", 4, 6),
    ("verify_otp", "ratio_to_empty_call"): ("VerifyOtp / empty call", 0.55, 0.8),
    ("get_balance", "ratio_to_empty_call"): ("GetBalance / empty call", 0.75, 0.9),
    ("idle_latency", "ratio_to_empty_call_and_commit"): ("lone SendOtp / (empty call + bare commit)", 2.0, 1.3),
    ("half_load", "p99_over_p50"): ("p99 / p50 at half of the maximum", 5, 3),
    ("growth", "ratio"): ("with 10 million entries / with 10 thousand", 0.85, 0.95),
    ("overload", "goodput_over_maximum"): ("goodput at 3x capacity / maximum", 0.8, 0.95),
    ("workers", "ratio_of_two_to_one"): ("two workers / one", 0, 0),
}
"""Latency ratios are better when lower, the others when higher."""


def conditions(environment: BenchmarkEnvironment) -> dict[str, object]:
    """Date, machine, versions and settings."""
    with psycopg.connect(environment.url) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "postgresql": row[0] if row else "",
            **{name: version(name) for name in _PACKAGES},
        },
        "postgresql_settings": POSTGRES,
        "load": {"calls_at_once": CALLS_AT_ONCE, "connections": CONNECTIONS},
    }


def throughput(rounds: Rounds) -> dict[str, object]:
    """The figures of the alternating rounds."""
    figures: dict[str, object] = {
        "empty_call": _subject(rounds.empty),
        "empty_call_pinned": {
            **_subject(rounds.empty_pinned),
            "ratio_to_empty_call": statistics.median(rounds.pinned_ratios),
            "ratio_to_empty_call_spread": _spread(rounds.pinned_ratios),
        },
    }
    for name, subject in rounds.subjects.items():
        to_empty, to_plain = rounds.ratios_to_empty(name), rounds.ratios_to_plain(name)
        figures[name] = {
            **_subject(subject),
            "ratio_to_empty_call": statistics.median(to_empty),
            "ratio_to_empty_call_spread": _spread(to_empty),
            "ratio_to_plain_transactions": statistics.median(to_plain),
            "ratio_to_plain_transactions_spread": _spread(to_plain),
        }
    figures["plain_transactions"] = {name: _subject(subject) for name, subject in rounds.plain.items()}
    figures["bare_statements"] = {
        "per_second": statistics.median(rounds.bare_per_second),
        "spread": _spread(rounds.bare_per_second),
    }
    figures["generator"] = _generator(rounds)
    return figures


def write(figures: Mapping[str, object], path: Path) -> None:
    """Write JSON, numbers rounded to four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(figures), indent=2) + "\n")


def table(figures: Mapping[str, Any]) -> str:
    """The figures as text."""
    return "\n".join([*_rates(figures), "", *_goals(figures), "", *_remarks(figures)])


def _subject(subject: Subject) -> dict[str, object]:
    outcomes = subject.outcomes
    figures: dict[str, object] = {
        "per_second": statistics.median(subject.per_second),
        "p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in outcomes),
        "p99_ms": statistics.median(outcome.percentile_ms(99) for outcome in outcomes),
        "spread": _spread(subject.per_second),
        "server_cpu": statistics.median(subject.server_cpu),
        "server_cpu_us_per_call": statistics.median(subject.cpu_us),
    }
    if subject.outcome_lags:
        figures["outcome_lag_seconds"] = statistics.median(subject.outcome_lags)
    return figures


def _generator(rounds: Rounds) -> dict[str, object]:
    """Shows that the generator is not the bottleneck: it waits most of the time, in every run."""
    outcomes = [outcome for subject in (rounds.empty, *rounds.subjects.values()) for outcome in subject.outcomes]
    busiest = max(outcomes, key=lambda outcome: outcome.generator_cpu)
    return {
        "largest_share_of_a_core": busiest.generator_cpu,
        "per_second_with_a_whole_core": busiest.per_second / busiest.generator_cpu,
    }


_COLUMNS = (
    # key, title, digits
    ("per_second", "per second", 0),
    ("p50_ms", "p50 ms", 1),
    ("p99_ms", "p99 ms", 1),
    ("ratio_to_empty_call", "of empty", 2),
    ("ratio_to_plain_transactions", "of plain", 1),
    ("server_cpu_us_per_call", "cpu us", 0),
    ("server_cpu", "of a core", 2),
)


def _rates(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'':25}" + "".join(f"{title:>12}" for _, title, _ in _COLUMNS)
    names = ("empty_call", "empty_call_pinned", "send_otp_hot", "send_otp_spread", "verify_otp", "get_balance")
    rows = {name: figures[name] for name in names}
    rows |= {f"plain_{name}": row for name, row in figures["plain_transactions"].items()}
    rows["bare_statements"] = figures["bare_statements"]
    for name, row in rows.items():
        cells = (f"{row[key]:12,.{digits}f}" if key in row else " " * 12 for key, _, digits in _COLUMNS)
        low, high = row["spread"]
        yield f"{name.replace('_', ' '):25}{''.join(cells)}   ({low:,.0f} to {high:,.0f})"


def _goals(figures: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'':46}{'measured':>9}{'limit':>7}{'goal':>7}"
    for (key, name), (title, limit, goal) in GOALS.items():
        if key not in figures:
            continue
        limits = f"{limit:7g}{goal:7g}" if goal else f"{'':14}"
        low, high = figures[key].get(f"{name}_spread") or figures[key]["spread"]
        yield f"{title:46}{figures[key][name]:9.2f}{limits}   ({low:.2f} to {high:.2f})"


def _remarks(figures: Mapping[str, Any]) -> Iterator[str]:
    idle, over, generator = figures["idle_latency"], figures["overload"], figures["generator"]
    yield (
        f"A lone SendOtp: p50 {idle['p50_ms']:.2f} ms, p99 {idle['p99_ms']:.2f} ms; an empty call "
        f"{idle['empty_call_p50_ms']:.2f} ms, a bare commit {idle['bare_commit_p50_ms']:.2f} ms."
        f" With a pinned polling thread an empty call takes {idle['empty_call_pinned_p50_ms']:.2f} ms, and the SendOtp "
        f"{idle['ratio_to_empty_call_pinned_and_commit']:.2f} times that and a commit."
    )
    ends = ", ".join(f"{number:,} {status}" for status, number in over["calls"].items())
    yield f"At 3x capacity: {ends}; OK with p50 {over['accepted_p50_ms']:.0f} ms, p99 {over['accepted_p99_ms']:.0f} ms."
    yield (
        f"The generator used {generator['largest_share_of_a_core']:.2f} of a core at most; with a whole one it would "
        f"make {generator['per_second_with_a_whole_core']:,.0f} calls per second."
    )
    entries = sum(audit["entries"] for audit in figures["audit"].values())
    yield f"Every ledger holds: {entries:,} entries audited. {figures['seconds']} s in all."


def _spread(figures: Sequence[float]) -> list[float]:
    return [min(figures), max(figures)]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
