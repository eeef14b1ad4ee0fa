"""What one caller waits, what callers wait at half of the maximum rate, and what becomes of three times too many."""

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import grpc
import psycopg

from tests.bench.calls import SEND_OTP, sends
from tests.bench.load import Outcome, drive
from tests.bench.rounds import MAIN, Rounds, Subject
from tests.bench.stage import Stage
from tests.bench.wire import Target

_STATUSES = {str(status.value[0]): status.name for status in grpc.StatusCode}

Figures = Mapping[str, object]


def idle_latency(stage: Stage, rounds: Rounds, *, count: int, seconds: float) -> Figures:
    """One caller alone: SendOtp beside an empty call and one bare commit, in alternating rounds."""
    alone, empty, beside, commits = [], [], [], []
    for _ in range(count):
        alone.append(_alone(rounds.subjects["send_otp_hot"], seconds))
        empty.append(_alone(rounds.empty, seconds / 2))
        beside.append(_alone(rounds.beside, seconds / 2))
        commits.append(_bare_commit_ms(stage, seconds / 2))
    ratios = _ratios_to_sums(alone, empty, commits)
    return {
        "p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in alone),
        "p99_ms": statistics.median(outcome.percentile_ms(99) for outcome in alone),
        "empty_call_p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in empty),
        "empty_call_beside_poller_p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in beside),
        "bare_commit_p50_ms": statistics.median(commits),
        "ratio_to_empty_call_and_commit": statistics.median(ratios),
        "ratio_to_empty_call_beside_poller_and_commit": statistics.median(_ratios_to_sums(alone, beside, commits)),
        "spread": [min(ratios), max(ratios)],
    }


def half_load(stage: Stage, rounds: Rounds, *, count: int, seconds: float) -> Figures:
    """SendOtp, evenly paced at half of the maximum of right before; latencies count from when each call was due."""
    subject = rounds.subjects["send_otp_hot"]
    target = Target(subject.server.port, SEND_OTP, stage.token)
    outcomes = []
    for _ in range(count):
        pace = subject.run(seconds / 2).per_second / 2
        outcomes.append(drive(target, sends("hot")(int(pace * seconds) + 1), seconds=seconds, pace=pace))
    ratios = [outcome.percentile_ms(99) / outcome.percentile_ms(50) for outcome in outcomes]
    return {
        "per_second": statistics.median(outcome.per_second for outcome in outcomes),
        "p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in outcomes),
        "p99_ms": statistics.median(outcome.percentile_ms(99) for outcome in outcomes),
        "p99_over_p50": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def overload(stage: Stage, rounds: Rounds, *, count: int, seconds: float) -> Figures:
    """SendOtp at three times the maximum of right before, whatever becomes of the calls, between rounds at the maximum.

    A maximum of minutes before may be that of another machine: on a shared one that became three to five times.
    """
    subject = rounds.subjects["send_otp_hot"]
    target = Target(subject.server.port, SEND_OTP, stage.token)
    ratios, paces, outcomes = [], [], []
    before = subject.run(seconds / 2).per_second
    for _ in range(count):
        pace = before * 3
        outcome = drive(target, sends("hot")(int(pace * seconds) + 1), seconds=seconds, pace=pace, in_waves=True)
        if subject.settled:
            subject.settled()
        after = subject.run(seconds / 2).per_second
        outcomes.append(outcome)
        paces.append(pace)
        ratios.append(outcome.per_second / statistics.mean([before, after]))
        before = after
    statuses = sum((outcome.statuses for outcome in outcomes), start=Counter())
    calls = {_STATUSES.get(status, status): number for status, number in statuses.most_common()}
    refused = statuses.total() - statuses["0"]
    return {
        "offered_per_second": statistics.median(paces),
        "goodput_per_second": statistics.median(outcome.per_second for outcome in outcomes),
        "goodput_over_maximum": statistics.median(ratios),
        "accepted_p50_ms": statistics.median(outcome.percentile_ms(50) for outcome in outcomes),
        "accepted_p99_ms": statistics.median(outcome.percentile_ms(99) for outcome in outcomes),
        "generator_cpu": statistics.median(outcome.generator_cpu for outcome in outcomes),
        "calls": calls,
        # By the door, with RetryInfo. The others were cancelled by gRPC: more came than Python could even refuse.
        "refused_with_retry_info": calls.get("RESOURCE_EXHAUSTED", 0) / refused if refused else None,
        "spread": [min(ratios), max(ratios)],
    }


def _ratios_to_sums(alone: Sequence[Outcome], empty: Sequence[Outcome], commits: Sequence[float]) -> list[float]:
    """Each median to that of the empty call and the commit of its round."""
    sums = [call.percentile_ms(50) + commit for call, commit in zip(empty, commits, strict=True)]
    return [outcome.percentile_ms(50) / least for outcome, least in zip(alone, sums, strict=True)]


def _alone(subject: Subject, seconds: float) -> Outcome:
    target = Target(subject.server.port, subject.path, subject.token)
    return drive(target, subject.bodies(int(2000 * (seconds + 1))), seconds=seconds + 0.5, calls_at_once=1)


def _bare_commit_ms(stage: Stage, seconds: float) -> float:
    """The median of one-row transactions, one after another, from a driver that waits in place."""
    latencies = []
    with psycopg.connect(stage.database_url(MAIN), autocommit=True, prepare_threshold=0) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bare_commits (number bigint NOT NULL)")
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            connection.execute("INSERT INTO bare_commits VALUES (1)")
            latencies.append(time.perf_counter() - began)
    return statistics.median(latencies) * 1000
