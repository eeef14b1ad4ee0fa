"""Drives load at a server, closed-loop or at a pace, and says what came of it."""

import gc
import select
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.wire import Connection, Target

CONNECTIONS = 8
CALLS_AT_ONCE = 256
WARM_SECONDS = 0.5
_DRAIN_SECONDS = 20.0
_TICK_SECONDS = 0.0005
_WAVE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of load came to. Its first WARM_SECONDS are left out of the rate and the latencies."""

    per_second: float
    """Calls that ended with OK."""
    latencies: list[float]
    """In seconds, sorted. At a pace they begin when the call was due, not when it went out."""
    statuses: Counter[str]
    """By grpc-status, of all calls, those after the end included."""
    generator_cpu: float
    """The generator's share of one core."""

    def percentile_ms(self, percent: float) -> float:
        """The latency below which so many percent of the calls were."""
        if not self.latencies:
            return float("nan")
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))] * 1000


def drive(
    target: Target,
    bodies: Sequence[bytes],
    *,
    seconds: float,
    calls_at_once: int = CALLS_AT_ONCE,
    pace: float | None = None,
    in_waves: bool = False,
    connections: int = CONNECTIONS,
) -> Outcome:
    """Make the calls of `bodies`, for as long as they last.

    Closed-loop: `calls_at_once` callers that call again as soon as they are answered. With a pace: so many calls per
    second, evenly spread, whether the earlier ones were answered or not. In waves, what is due and what was answered is
    looked at every 5 ms: each answer of a flood woke the generator, which took a third of a core from the server.
    """
    count = min(connections, calls_at_once)
    lines = [Connection(target, bodies[number::count]) for number in range(count)]
    gc.collect()
    gc.disable()
    try:
        cpu, began = time.process_time(), time.perf_counter()
        if pace is None:
            _call_in_turn(lines, calls_at_once // count, began + seconds)
        else:
            _call_at_pace(lines, pace, began, began + seconds, in_waves=in_waves)
        ended, cpu = time.perf_counter(), time.process_time() - cpu
        _await_answers(lines, ended + _DRAIN_SECONDS)
    finally:
        gc.enable()
        for line in lines:
            line.socket.close()
    return _outcome(lines, began + WARM_SECONDS, ended, cpu / (ended - began))


def _call_in_turn(lines: Sequence[Connection], calls_at_once: int, end: float) -> None:
    for line in lines:
        line.due = [time.perf_counter()] * calls_at_once
        line.send()
    while (now := time.perf_counter()) < end and any(line.started < len(line.calls) for line in lines):
        for line in select.select(lines, [], [], end - now)[0]:
            now = time.perf_counter()
            line.due += [now] * line.receive(now)
            line.send()


def _call_at_pace(lines: Sequence[Connection], pace: float, began: float, end: float, *, in_waves: bool) -> None:
    calls = sum(len(line.calls) for line in lines)
    released = 0
    while (now := time.perf_counter()) < end:
        for number in range(released, min(calls, int((now - began) * pace))):
            lines[number % len(lines)].due.append(began + number / pace)
            released = number + 1
        for line in lines:
            line.send()
        if in_waves:
            time.sleep(_WAVE_SECONDS)
        for line in select.select(lines, [], [], 0 if in_waves else _TICK_SECONDS)[0]:
            line.receive(time.perf_counter())


def _await_answers(lines: Sequence[Connection], deadline: float) -> None:
    """Let what is in flight end, and begin no more."""
    for line in lines:
        del line.due[line.started :]
    while any(line.in_flight for line in lines):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{sum(line.in_flight for line in lines)} calls were not answered")
        for line in select.select(lines, [], [], 0.1)[0]:
            line.receive(time.perf_counter())
            line.send()


def _outcome(lines: Sequence[Connection], began: float, ended: float, cpu: float) -> Outcome:
    counted = [(due, end) for line in lines for due, end in line.ended if began <= end < ended]
    return Outcome(
        per_second=len(counted) / (ended - began),
        latencies=sorted(end - due for due, end in counted),
        statuses=sum((line.statuses for line in lines), Counter()),
        generator_cpu=cpu,
    )
