"""Generates load, closed-loop or at a fixed rate, and returns rates, latencies and statuses."""

import gc
import select
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.connection import Connection, Target

CONNECTIONS = 8
CALLS_AT_ONCE = 256
WARM_SECONDS = 0.5
_DRAIN_SECONDS = 20.0
_TICK_SECONDS = 0.0005
_BATCH_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one run. Its first WARM_SECONDS are left out of the rate and the latencies."""

    per_second: float
    """Calls that ended with OK."""
    latencies: list[float]
    """In seconds, sorted. At a fixed rate they count from when the call was due, not from when it was sent."""
    statuses: Counter[str]
    """Calls by grpc-status, including those that ended after the run."""
    generator_cpu: float
    """The generator's share of one core."""

    def percentile_ms(self, percent: float) -> float:
        """The given percentile of the latencies, in milliseconds."""
        if not self.latencies:
            return float("nan")
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))] * 1000


def drive(
    target: Target,
    bodies: Sequence[bytes],
    *,
    seconds: float,
    calls_at_once: int = CALLS_AT_ONCE,
    per_second: float | None = None,
    in_batches: bool = False,
    connections: int = CONNECTIONS,
) -> Outcome:
    """Make the calls of `bodies`, for as long as they last.

    Closed-loop: `calls_at_once` callers that call again as soon as they are answered. With `per_second`: calls at this
    rate, evenly spread, whether or not earlier ones were answered. In batches: sends and reads only every 5 ms, because
    in an overload every answer woke the generator, which took a third of a core from the server.
    """
    count = min(connections, calls_at_once)
    open_connections = [Connection(target, bodies[number::count]) for number in range(count)]
    gc.collect()
    gc.disable()
    try:
        cpu, began = time.process_time(), time.perf_counter()
        if per_second is None:
            _call_closed_loop(open_connections, calls_at_once // count, began + seconds)
        else:
            _call_at_rate(open_connections, per_second, began, began + seconds, in_batches=in_batches)
        ended, cpu = time.perf_counter(), time.process_time() - cpu
        _await_answers(open_connections, ended + _DRAIN_SECONDS)
    finally:
        gc.enable()
        for connection in open_connections:
            connection.socket.close()
    return _outcome(open_connections, began + WARM_SECONDS, ended, cpu / (ended - began))


def _call_closed_loop(open_connections: Sequence[Connection], calls_at_once: int, end: float) -> None:
    for connection in open_connections:
        connection.due = [time.perf_counter()] * calls_at_once
        connection.send()
    while (now := time.perf_counter()) < end and any(
        connection.started < len(connection.calls) for connection in open_connections
    ):
        for connection in select.select(open_connections, [], [], end - now)[0]:
            now = time.perf_counter()
            connection.due += [now] * connection.receive(now)
            connection.send()


def _call_at_rate(
    open_connections: Sequence[Connection], per_second: float, began: float, end: float, *, in_batches: bool
) -> None:
    calls = sum(len(connection.calls) for connection in open_connections)
    released = 0
    while (now := time.perf_counter()) < end:
        for number in range(released, min(calls, int((now - began) * per_second))):
            open_connections[number % len(open_connections)].due.append(began + number / per_second)
            released = number + 1
        for connection in open_connections:
            connection.send()
        if in_batches:
            time.sleep(_BATCH_SECONDS)
        for connection in select.select(open_connections, [], [], 0 if in_batches else _TICK_SECONDS)[0]:
            connection.receive(time.perf_counter())


def _await_answers(open_connections: Sequence[Connection], deadline: float) -> None:
    """Wait for the calls in flight; begin no more."""
    for connection in open_connections:
        del connection.due[connection.started :]
    while any(connection.in_flight for connection in open_connections):
        if time.perf_counter() > deadline:
            raise TimeoutError(
                f"{sum(connection.in_flight for connection in open_connections)} calls were not answered"
            )
        for connection in select.select(open_connections, [], [], 0.1)[0]:
            connection.receive(time.perf_counter())
            connection.send()


def _outcome(open_connections: Sequence[Connection], began: float, ended: float, cpu: float) -> Outcome:
    counted = [(due, end) for connection in open_connections for due, end in connection.ended if began <= end < ended]
    return Outcome(
        per_second=len(counted) / (ended - began),
        latencies=sorted(end - due for due, end in counted),
        statuses=sum((connection.statuses for connection in open_connections), Counter()),
        generator_cpu=cpu,
    )
