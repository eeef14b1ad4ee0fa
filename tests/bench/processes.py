"""What processes have used of the processors: the servers, and PostgreSQL's backends."""

import time
from pathlib import Path
from typing import Any

import psycopg

from tests.bench.rounds import cpu_seconds


def process_seconds(pid: int) -> float:
    """What a process has used of the processors so far, its ended threads included; 0 when it has ended.

    From the clock of clock_getcpuclockid(3), which counts nanoseconds. /proc/PID/stat counts hundredths of a second;
    /proc/PID/task/*/schedstat leaves out the threads that have ended, and gRPC's come and go.
    """
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:  # there is no such process, or no such clock
        return cpu_seconds(pid)


def server_seconds(pid: int) -> float:
    """As `process_seconds`, with the processes that it has started: the workers of a supervisor."""
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return process_seconds(pid) + sum(process_seconds(int(each)) for each in started)


def backend_seconds(monitor: psycopg.Connection[Any]) -> dict[int, float]:
    """What each connection to the monitor's database has used of the processors so far, by the backend's pid."""
    rows = monitor.execute(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return {pid: process_seconds(pid) for (pid,) in rows}
