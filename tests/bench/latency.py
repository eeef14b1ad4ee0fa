"""Latency of a single caller and at half of the maximum rate, and the results at three times the maximum."""

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import grpc
import psycopg

from tests.bench.calls import SEND_OTP, sends
from tests.bench.connection import Target
from tests.bench.environment import BenchmarkEnvironment
from tests.bench.load import Outcome, drive
from tests.bench.rounds import MAIN, Rounds, Subject

_STATUSES = {str(status.value[0]): status.name for status in grpc.StatusCode}

Figures = Mapping[str, object]


def idle_latency(environment: BenchmarkEnvironment, rounds: Rounds, *, count: int, seconds: float) -> Figures:
    """A single caller: SendOtp, an empty call and one bare commit, in alternating rounds."""
    single, empty, empty_pinned, commits = [], [], [], []
    for _ in range(count):
        single.append(_single_caller(rounds.subjects["send_otp_hot"], seconds))
        empty.append(_single_caller(rounds.empty, seconds / 2))
        empty_pinned.append(_single_caller(rounds.empty_pinned, seconds / 2))
        commits.append(_bare_commit_ms(environment, seconds / 2))
    ratios = _ratios_to_sums(single, empty, commits)
    return {
        "p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in single),
        "p99_ms": statistics.median(outcome.percentile_ms(99) for outcome in single),
        "empty_call_p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in empty),
        "empty_call_pinned_p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in empty_pinned),
        "bare_commit_p50_ms": statistics.median(commits),
        "ratio_to_empty_call_and_commit": statistics.median(ratios),
        "ratio_to_empty_call_pinned_and_commit": statistics.median(_ratios_to_sums(single, empty_pinned, commits)),
        "spread": [min(ratios), max(ratios)],
    }


def half_load(environment: BenchmarkEnvironment, rounds: Rounds, *, count: int, seconds: float) -> Figures:
    """SendOtp, evenly spread at half of the maximum measured right before; latencies count from when a call was due."""
    subject = rounds.subjects["send_otp_hot"]
    target = Target(subject.server.port, SEND_OTP, environment.token)
    outcomes = []
    for _ in range(count):
        per_second = subject.run(seconds / 2).per_second / 2
        outcomes.append(
            drive(target, sends("hot")(int(per_second * seconds) + 1), seconds=seconds, per_second=per_second)
        )
    ratios = [outcome.percentile_ms(99) / outcome.percentile_ms(50) for outcome in outcomes]
    return {
        "per_second": statistics.median(outcome.per_second for outcome in outcomes),
        "p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in outcomes),
        "p99_ms": statistics.median(outcome.percentile_ms(99) for outcome in outcomes),
        "p99_over_p50": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def overload(environment: BenchmarkEnvironment, rounds: Rounds, *, count: int, seconds: float) -> Figures:
    """SendOtp at three times the maximum measured right before, between rounds at the maximum.

    A maximum measured minutes before is not comparable: on a shared machine three times became up to five times.
    """
    subject = rounds.subjects["send_otp_hot"]
    target = Target(subject.server.port, SEND_OTP, environment.token)
    ratios, offered, outcomes = [], [], []
    before = subject.run(seconds / 2).per_second
    for _ in range(count):
        per_second = before * 3
        outcome = drive(
            target, sends("hot")(int(per_second * seconds) + 1), seconds=seconds, per_second=per_second, in_batches=True
        )
        if subject.wait_for_outcomes:
            subject.wait_for_outcomes()
        after = subject.run(seconds / 2).per_second
        outcomes.append(outcome)
        offered.append(per_second)
        ratios.append(outcome.per_second / statistics.mean([before, after]))
        before = after
    statuses = sum((outcome.statuses for outcome in outcomes), start=Counter())
    calls = {_STATUSES.get(status, status): number for status, number in statuses.most_common()}
    refused = statuses.total() - statuses["0"]
    return {
        "offered_per_second": statistics.median(offered),
        "goodput_per_second": statistics.median(outcome.per_second for outcome in outcomes),
        "goodput_over_maximum": statistics.median(ratios),
        "accepted_p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in outcomes),
        "accepted_p99_ms": statistics.median(outcome.percentile_ms(99) for outcome in outcomes),
        "generator_cpu": statistics.median(outcome.generator_cpu for outcome in outcomes),
        "calls": calls,
        # By the interceptor, with RetryInfo. gRPC cancelled the others: more came than Python could refuse.
        "refused_with_retry_info": calls.get("RESOURCE_EXHAUSTED", 0) / refused if refused else None,
        "spread": [min(ratios), max(ratios)],
    }


def _ratios_to_sums(single: Sequence[Outcome], empty: Sequence[Outcome], commits: Sequence[float]) -> list[float]:
    """Each median over the sum of those of the empty call and the commit of its round."""
    sums = [call.percentile_ms(50) + commit for call, commit in zip(empty, commits, strict=True)]
    return [outcome.percentile_ms(50) / least for outcome, least in zip(single, sums, strict=True)]


def _single_caller(subject: Subject, seconds: float) -> Outcome:
    target = Target(subject.server.port, subject.path, subject.token)
    return drive(target, subject.bodies(int(2000 * (seconds + 1))), seconds=seconds + 0.5, calls_at_once=1)


def _bare_commit_ms(environment: BenchmarkEnvironment, seconds: float) -> float:
    """The median of one-row transactions, one after another, from a blocking driver."""
    latencies = []
    with psycopg.connect(environment.database_url(MAIN), autocommit=True, prepare_threshold=0) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare_commits (number bigint NOT NULL)")
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            connection.execute("INSERT INTO bare_commits VALUES (1)")
            latencies.append(time.perf_counter() - began)
    return statistics.median(latencies) * 1000
