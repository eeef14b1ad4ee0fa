"""The systemd units of docs/deployment/: what systemd says of them, and the whole story by their command lines.

systemd starts them only where it is the first process. Here each ExecStart runs as systemd would run it, as far as
util-linux can: as a user of its own, with the unit's environment and credentials and no other, without capabilities,
new privileges or code that it writes itself, in namespaces of its own, with the whole file system read-only.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from tests.deployment.stand_ins import StandIns, stand_ins
from tests.faults.processes import CHECKOUT, listens
from tests.waiting import SECONDS, until

UNITS: Final = sorted((CHECKOUT / "docs/deployment").glob("*.service"))
PYTHON: Final = "/opt/pulsa/bin/python"
USER: Final = "61234"
"""Of the range from which systemd takes the users of DynamicUser."""
MOST_EXPOSED: Final = 20
"""Of `systemd-analyze security`, whose scale ends at 100."""
CONFINED: Final = """
mount --make-rprivate / && mount --bind / / && mount -o remount,bind,ro / && cd / && exec setpriv --reuid "$USER_ID" \
  --regid "$USER_ID" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""
NO_WRITTEN_CODE: Final = (
    "import ctypes, os, sys\n"
    "assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0\n"  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def values(unit: Path, name: str) -> list[str]:
    """Every value of an option of the unit."""
    return [line.partition("=")[2] for line in unit.read_text().splitlines() if line.startswith(f"{name}=")]


@pytest.fixture(scope="session")
def python() -> Iterator[Path]:
    """The Python of an environment with the wheels of dist/, whose dependencies are those of this .venv."""
    with TemporaryDirectory(prefix="pulsa-units-") as name:
        (folder := Path(name)).chmod(0o755)
        venv.create(folder)
        packages = Path(sysconfig.get_path("purelib"))
        inside = folder / packages.relative_to(sys.prefix)
        (inside / "dependencies.pth").write_text(f"{packages}\n")
        wheels = [str(wheel) for wheel in (CHECKOUT / "dist").glob("*.whl")]
        assert len(wheels) == 2, "make wheels comes first"
        install = ["python3", "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-index"]
        subprocess.run([*install, "--no-deps", *wheels], check=True)  # noqa: S603 - pip
        yield folder / "bin/python"


@pytest.fixture
async def around(database_url: str) -> AsyncIterator[StandIns]:
    with TemporaryDirectory(prefix="pulsa-deployment-") as name:
        (folder := Path(name)).chmod(0o755)
        async with stand_ins(database_url, folder) as around:
            yield around


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in UNITS:  # it asks whether the command exists
        (tmp_path / unit.name).write_text(unit.read_text().replace(PYTHON, sys.executable))
    systemd = shutil.which("systemd-analyze")
    assert systemd, "systemd-analyze is needed: apt install systemd"

    verified = subprocess.run(  # noqa: S603 - Debian's
        [systemd, "verify", "--man=no", *tmp_path.glob("*.service")], capture_output=True, text=True, check=False
    )

    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_a_unit_hardly_exposed(unit: Path) -> None:
    systemd = shutil.which("systemd-analyze")
    assert systemd, "systemd-analyze is needed: apt install systemd"

    judged = subprocess.run(  # noqa: S603 - Debian's
        [systemd, "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert judged.returncode == 0, judged.stdout + judged.stderr


async def test_the_units_command_lines_start_the_whole_story(around: StandIns, python: Path) -> None:
    ports = [int(around.plain[name].rpartition(":")[2]) for name in ("PULSA_LISTEN", "PULSA_WEBHOOK_LISTEN")]
    migrate, server, webhook = (UNITS[0].with_name(f"pulsa{name}.service") for name in ("-migrate", "", "-webhook"))
    async with started(migrate, around, python) as migrating:
        await until(lambda: migrating.poll() is not None)
        assert migrating.returncode == 0, (around.folder / "pulsa-migrate.log").read_text()
    async with started(server, around, python), started(webhook, around, python):
        await until(lambda: all(map(listens, ports)))
        confined = statuses_of_the_user()
        printed = await around.play_demo()

    assert "Every step held." in printed, printed
    assert len(confined) == 2
    for text in confined:
        assert re.findall(r"^(?:NoNewPrivs|CapEff|CapBnd):\t(\w+)$", text, re.MULTILINE) == ["0" * 16, "0" * 16, "1"]


@asynccontextmanager
async def started(unit: Path, around: StandIns, python: Path) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """Run the ExecStart of a unit until the block ends; then SIGTERM must end it in time."""
    (command,) = values(unit, "ExecStart")
    credentials = around.folder / unit.stem
    environment = dict(line.replace("%d", str(credentials)).split("=", 1) for line in values(unit, "Environment"))
    write_credentials(credentials, around)
    given = {name: value for name, value in around.plain.items() if name.startswith("PULSA_")}
    log = around.folder / f"{unit.stem}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - the unit's own command, started at once
            [
                *("unshare", "--mount", "--ipc", "--uts", "sh", "-c", CONFINED, "sh"),
                *(str(python), "-c", NO_WRITTEN_CODE),
                *command.replace(PYTHON, str(python)).split(),
            ],
            env={"PATH": os.environ["PATH"], "USER_ID": USER} | given | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
        assert process.poll() in (None, 0), log.read_text()
    finally:
        process.terminate()
        process.wait(SECONDS)
    assert process.returncode == 0, log.read_text()


def write_credentials(folder: Path, around: StandIns) -> None:
    """Every credential of the units, as LoadCredential names them, for the user alone."""
    folder.mkdir(mode=0o700)
    owner = int(USER)
    files = {f"secrets_{name}": value for name, value in around.secrets.items()}
    files |= {"owner-url": around.secrets["database-url"], "token": around.token.read_text()}
    for name, value in files.items():
        (folder / name).write_text(value)
        (folder / name).chmod(0o400)
        os.chown(folder / name, owner, owner)
    os.chown(folder, owner, owner)


def statuses_of_the_user() -> list[str]:
    """/proc/PID/status of each process of USER."""
    texts = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended
            texts.append(status.read_text())
    return [text for text in texts if re.search(rf"^Uid:\t{USER}\b", text, re.MULTILINE)]
