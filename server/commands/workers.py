"""`serve --workers N`: several processes on one port, each restarted when it dies."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import FrameType
from typing import Final

import structlog

from server.environment import SettingsError
from server.metrics_page import serve_metrics
from server.settings import Settings

_log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 0.1
_RESTART_SECONDS: Final = 1.0
"""A worker that dies at once is not started more often than this."""
_ORPHAN_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 10.0
"""On top of the drain, before a worker that does not end is killed."""


class Supervisor:
    """Keeps the workers running until it is told to stop, then lets all of them drain at once."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._metrics = tempfile.TemporaryDirectory(prefix="pulsa-metrics-")
        self._environment = {
            **os.environ,
            "PULSA_DATABASE_URL": url,
            "PULSA_DATABASE_MIGRATE": "false",
            "PULSA_WORKERS": str(settings.workers),
            "PULSA_METRICS_LISTEN": "off",
            "PROMETHEUS_MULTIPROC_DIR": self._metrics.name,
        }
        self._told = False

    def run(self) -> None:
        """Return when every worker has ended. Raises SettingsError when the port is taken."""
        _check_free(self._settings.listen)
        serve_metrics(self._settings.metrics.listen, worker_files=self._metrics.name)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        workers = [self._start(position) for position in range(self._settings.workers)]
        while not self._told:
            time.sleep(_POLL_SECONDS)
            for position, worker in enumerate(workers):
                if worker.poll() is not None and not self._told:
                    _log.error("a worker died", worker=position, exit_code=worker.returncode)
                    time.sleep(_RESTART_SECONDS)
                    workers[position] = self._start(position)
        self._end(workers)
        self._metrics.cleanup()

    def _start(self, position: int) -> "subprocess.Popen[bytes]":
        # Started anew, not forked: gRPC does not survive a fork.
        worker = subprocess.Popen([sys.executable, "-m", "server", "serve", "--worker"], env=self._environment)
        _log.info("worker started", worker=position, pid=worker.pid)
        return worker

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._told = True

    def _end(self, workers: list["subprocess.Popen[bytes]"]) -> None:
        for worker in workers:
            worker.terminate()
        deadline = time.monotonic() + self._settings.lame_duck_seconds + self._settings.drain_seconds + _STOP_SECONDS
        for worker in workers:
            try:
                worker.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("a worker did not end and was killed", pid=worker.pid)
                worker.kill()
                worker.wait()


async def until_orphaned(supervisor: int) -> None:
    """Return once the process that started this one is gone."""
    while os.getppid() == supervisor:  # noqa: ASYNC110 - nobody tells a process that its parent died
        await asyncio.sleep(_ORPHAN_SECONDS)


def _check_free(listen: str) -> None:
    """Raise SettingsError when somebody listens: the workers' sharing of the port would not notice."""
    host, _, port = listen.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise SettingsError(f"PULSA_LISTEN: {listen} cannot be listened on: {error.strerror}") from None
