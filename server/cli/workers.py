"""`serve --workers N`: several processes on one port, each restarted when it exits. And the endpoint of metrics."""

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
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from server.environment import SettingsError
from server.settings import Settings

_log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 0.1
_FIRST_DELAY_SECONDS: Final = 0.5
_MAXIMUM_DELAY_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
"""After a worker has run for this long, its next restart is fast again."""
_ORPHAN_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 15.0
"""After the drain, before a worker that has not exited is killed."""
_COMMAND: Final = (sys.executable, "-m", "server", "serve")


class Supervisor:
    """Keeps the workers running until SIGTERM or SIGINT, then drains all of them at once."""

    def __init__(self, settings: Settings, url: str, *, command: Sequence[str] = _COMMAND) -> None:
        """`url` is the database's. `command` followed by `--worker` and the supervisor's process id starts a worker."""
        self._settings = settings
        self._url = url
        self._command = [*command, "--worker", str(os.getpid())]
        self._stopping = False

    def run(self) -> None:
        """Return when every worker has exited. Raises SettingsError when the port is in use."""
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
            while not self._stopping:
                for worker in workers:
                    worker.keep_running()
                time.sleep(_POLL_SECONDS)
            self._stop_workers(workers)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _stop_workers(self, workers: Sequence["_Worker"]) -> None:
        deadline = time.monotonic() + self._settings.lame_duck_seconds + self._settings.drain_seconds + _STOP_SECONDS
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait_until(deadline)


class _Worker:
    """A worker process that is restarted when it exits, after a delay that doubles while it exits early."""

    def __init__(self, number: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._number = number
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._start_time = -math.inf
        self._restart_time = -math.inf
        self._delay_seconds = _FIRST_DELAY_SECONDS

    def keep_running(self) -> None:
        """Start the process when it is not running and the delay is over."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._died(self._process, now)
        if self._process is None and now >= self._restart_time:
            # A new interpreter, not a fork: gRPC does not survive a fork.
            self._process = subprocess.Popen(self._command, env=self._environment)  # noqa: S603 - our own program
            self._start_time = now
            _log.info("worker started", worker=self._number, pid=self._process.pid)

    def terminate(self) -> None:
        """Send SIGTERM: the process drains and exits."""
        if self._process is not None:
            self._process.terminate()

    def wait_until(self, deadline: float) -> None:
        """Return when the process has exited; kill it at the deadline, in seconds of time.monotonic()."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("a worker did not exit and was killed", worker=self._number, pid=self._process.pid)
            self._process.kill()
            self._process.wait()

    def _died(self, process: "subprocess.Popen[bytes]", now: float) -> None:
        if now - self._start_time >= _STEADY_SECONDS:
            self._delay_seconds = _FIRST_DELAY_SECONDS
        _log.error(
            "a worker died",
            worker=self._number,
            pid=process.pid,
            exit_code=process.returncode,
            restart_in_seconds=self._delay_seconds,
        )
        # Removes its gauges of work in progress; its counters stay.
        mark_process_dead(process.pid, self._environment["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]
        self._process = None
        self._restart_time = now + self._delay_seconds
        self._delay_seconds = min(_MAXIMUM_DELAY_SECONDS, 2 * self._delay_seconds)


async def wait_until_orphaned(supervisor: int) -> None:
    """Return when the process with id `supervisor`, which started this one, has exited."""
    while os.getppid() == supervisor:  # noqa: ASYNC110 - no event reports that the parent exited
        await asyncio.sleep(_ORPHAN_SECONDS)


def _hold_port(listen: str) -> socket.socket:
    """Return a socket that is bound to the address and reserves its port for the workers; port 0 becomes a free one.

    It never listens, so that the kernel gives it no connection. Raises SettingsError when another program listens
    there: the workers, which share the port, would not notice.
    """
    host, _, port = listen.rpartition(":")
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname()
        holder = socket.socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError as error:
        raise SettingsError(f"PULSA_LISTEN: {listen} cannot be listened on: {error.strerror}") from None
    return holder


def serve_metrics(listen: str, *, worker_files: str | None = None) -> None:
    """Serve `GET /metrics` at `host:port` from a thread, until the process ends; do nothing for `off`.

    `worker_files` is the folder in which worker processes write their metrics: the endpoint then serves their sums.
    Raises SettingsError when it cannot listen there.
    """
    if listen == "off":
        return
    registry = REGISTRY
    if worker_files is not None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=worker_files)  # type: ignore[no-untyped-call]
    host, _, port = listen.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise SettingsError(f"PULSA_METRICS_LISTEN: {listen} cannot be listened on: {error.strerror}") from None
