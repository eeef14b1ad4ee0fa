"""`make wheels` is reproducible: one commit gives the same bytes, wherever, whenever and by whomever it is built."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


Wheels = dict[str, Path]
"""The path of each wheel, by package."""


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wheels, Wheels]:
    """Two builds of HEAD that differ in all that a build may not depend on."""
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("the other")
    return (
        build(one, umask=0o022, TZ="UTC", LC_ALL="C.UTF-8", PYTHONHASHSEED="1"),
        build(other, umask=0o077, TZ="Asia/Jakarta", LC_ALL="C", PYTHONHASHSEED="2"),
    )


def test_two_builds_of_a_commit_give_the_same_bytes(builds: tuple[Wheels, Wheels]) -> None:
    one, other = ({package: wheel.read_bytes() for package, wheel in build.items()} for build in builds)

    assert sorted(one) == ["pulsa_client", "pulsa_server"]
    assert one == other


def test_no_time_but_that_of_the_commit_is_in_a_wheel(builds: tuple[Wheels, Wheels]) -> None:
    committed = datetime.fromtimestamp(int(output("git", "log", "-1", "--format=%ct")), UTC)
    stored = committed.replace(second=committed.second // 2 * 2)  # zip files store even seconds

    for wheel in builds[0].values():
        times = {datetime(*entry.date_time, tzinfo=UTC) for entry in zipfile.ZipFile(wheel).infolist()}
        assert times == {stored}


def test_the_servers_wheel_has_every_file_of_the_server_but_the_stand_ins(builds: tuple[Wheels, Wheels]) -> None:
    tracked = output("git", "ls-tree", "-r", "--name-only", "HEAD", "server").splitlines()
    wanted = {name for name in tracked if not name.startswith("server/sandbox/")}

    assert wanted - set(zipfile.ZipFile(builds[0]["pulsa_server"]).namelist()) == set()


def test_the_clients_wheel_brings_a_command_and_types_to_an_environment_without_a_checkout(
    builds: tuple[Wheels, Wheels], tmp_path: Path
) -> None:
    packages = Path(sysconfig.get_path("purelib"))
    venv.create(tmp_path)
    (tmp_path / packages.relative_to(sys.prefix) / "dependencies.pth").write_text(f"{packages}\n")
    python, bare = str(tmp_path / "bin/python"), {"PATH": os.environ["PATH"]}
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-index", str(builds[0]["pulsa_client"]))
    subprocess.run(["python3", *install], env=bare, check=True)  # noqa: S603, S607 - the Makefile's Python, which has pip

    helped = subprocess.run([tmp_path / "bin/pulsa", "--help"], env=bare, stdout=subprocess.PIPE, check=True)  # noqa: S603
    imports = "import pulsa.aio, pulsa.client, pulsa.reports, pathlib; folder = pathlib.Path(pulsa.aio.__file__).parent"
    show = f"{imports}; print(folder, (folder / 'py.typed').exists())"
    found = subprocess.run([python, "-c", show], cwd="/", env=bare, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603

    assert b"top-up" in helped.stdout
    assert found.stdout.split() == [str(tmp_path / packages.relative_to(sys.prefix) / "pulsa"), "True"]


def build(folder: Path, *, umask: int, **environment: str) -> Wheels:
    """Clone HEAD into the folder and run `make wheels` there, with this .venv; returns the wheels by package."""
    clone = folder / "pulsa"
    output("git", "clone", "--quiet", str(CHECKOUT), str(clone))
    (clone / ".venv").mkdir()
    (clone / ".venv" / "ready").touch()
    subprocess.run(  # noqa: S603 - our own Makefile
        ["make", "wheels", f"BIN={Path(sys.prefix, 'bin')}"],  # noqa: S607 - the make that runs this test
        cwd=clone,
        env=os.environ | environment,
        umask=umask,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return {wheel.name.split("-")[0]: wheel for wheel in (clone / "dist").glob("*.whl")}


def output(*command: str) -> str:
    return subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603
