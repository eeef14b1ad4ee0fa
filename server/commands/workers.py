"""`serve --workers N`: several processes on one port, each restarted when it dies."""

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

import structlog
from prometheus_client.multiprocess import mark_process_dead

from server.environment import SettingsError
from server.metrics_page import serve_metrics
from server.settings import Settings

_log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 0.1
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
"""A worker that lived for so long was well: the next pause is a short one again."""
_ORPHAN_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 10.0
"""On top of the drain, before a worker that does not end is killed."""
_COMMAND: Final = (sys.executable, "-m", "server", "serve")


class Supervisor:
    """Keeps the workers running until it is told to stop, then lets all of them drain at once."""

    def __init__(self, settings: Settings, url: str, *, command: Sequence[str] = _COMMAND) -> None:
        """The command starts a worker when it is followed by `--worker` and the supervisor's process id."""
        self._settings = settings
        self._url = url
        self._command = [*command, "--worker", str(os.getpid())]
        self._told = False

    def run(self) -> None:
        """Return when every worker has ended. Raises SettingsError when the port is taken."""
        with (
            _hold_port(self._settings.listen) as holder,
            tempfile.TemporaryDirectory(prefix="pulsa-metrics-") as metrics,
        ):
            serve_metrics(self._settings.metrics.listen, worker_files=metrics)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._stop)
            host, _, _ = self._settings.listen.rpartition(":")
            environment = {
                **os.environ,
                "PULSA_LISTEN": f"{host}:{holder.getsockname()[1]}",
                "PULSA_DATABASE_URL": self._url,
                "PULSA_DATABASE_MIGRATE": "false",
                "PULSA_WORKERS": str(self._settings.workers),
                "PULSA_METRICS_LISTEN": "off",
                "PROMETHEUS_MULTIPROC_DIR": metrics,
            }
            workers = [_Worker(number, self._command, environment) for number in range(self._settings.workers)]
            while not self._told:
                for worker in workers:
                    worker.keep_running()
                time.sleep(_POLL_SECONDS)
            self._end(workers)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._told = True

    def _end(self, workers: Sequence["_Worker"]) -> None:
        deadline = time.monotonic() + self._settings.lame_duck_seconds + self._settings.drain_seconds + _STOP_SECONDS
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait_until(deadline)


class _Worker:
    """A process, and another one when it dies: after a pause that doubles while they die young."""

    def __init__(self, number: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._number = number
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._start_time = -math.inf
        self._restart_time = -math.inf
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def keep_running(self) -> None:
        """Notice when it has died, and start it once the pause is over."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._died(self._process, now)
        if self._process is None and now >= self._restart_time:
            # Started anew, not forked: gRPC does not survive a fork.
            self._process = subprocess.Popen(self._command, env=self._environment)  # noqa: S603 - our own program
            self._start_time = now
            _log.info("worker started", worker=self._number, pid=self._process.pid)

    def terminate(self) -> None:
        """Tell it to drain and to end."""
        if self._process is not None:
            self._process.terminate()

    def wait_until(self, deadline: float) -> None:
        """Return when it has ended; kill it at the deadline, in seconds of time.monotonic()."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("a worker did not end and was killed", worker=self._number, pid=self._process.pid)
            self._process.kill()
            self._process.wait()

    def _died(self, process: "subprocess.Popen[bytes]", now: float) -> None:
        if now - self._start_time >= _STEADY_SECONDS:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        _log.error(
            "a worker died",
            worker=self._number,
            pid=process.pid,
            exit_code=process.returncode,
            restart_in_seconds=self._pause_seconds,
        )
        # What it was doing is over; what it counted stays.
        mark_process_dead(process.pid, self._environment["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]
        self._process = None
        self._restart_time = now + self._pause_seconds
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, 2 * self._pause_seconds)


async def until_orphaned(supervisor: int) -> None:
    """Return once the process that started this one is gone."""
    while os.getppid() == supervisor:  # noqa: ASYNC110 - nobody tells a process that its parent died
        await asyncio.sleep(_ORPHAN_SECONDS)


def _hold_port(listen: str) -> socket.socket:
    """A socket on the address that keeps its port, settled if it was 0, for those who share it.

    It never listens, so that no connection is dealt out to it. Raises SettingsError when somebody else listens there:
    the workers' sharing of the port would not notice.
    """
    host, _, port = listen.rpartition(":")
    try:
        [(family, *_, place), *_] = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            place = probe.getsockname()
        holder = socket.socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(place)
    except OSError as error:
        raise SettingsError(f"PULSA_LISTEN: {listen} cannot be listened on: {error.strerror}") from None
    return holder
