"""How a PostgreSQL program is started: as a user it accepts, and so that it never outlives who started it.

Run as a script, this file is the last step of that start. It needs the standard library only.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

NOBODY = 65534
PR_SET_PDEATHSIG = 1  # prctl(2)


def launch(
    program: Path, arguments: Sequence[str], *, run_as: Sequence[str], log: int, lock: int
) -> subprocess.Popen[bytes]:
    """Start a PostgreSQL program whose output goes to log and whose every process holds lock open.

    When the calling thread ends, however it ends, the kernel tells the program to shut down (Linux only). The program
    is in a session of its own: a Ctrl-C in the terminal reaches the caller, who decides when the database may go.
    """
    script = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid())]
    return subprocess.Popen(  # noqa: S603 - our own paths and settings, and no shell
        [*run_as, *script, str(program), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[lock],
        cwd="/",
        env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath},
        start_new_session=True,
    )


def run_as(folder: Path, data: Path) -> list[str] | None:
    """The command prefix under which PostgreSQL starts: nothing for a normal user, another user id for root.

    PostgreSQL refuses root. None where root may not become anyone else.
    """
    if os.geteuid() != 0:
        return []
    for prefix in _other_users(folder, data):
        program = shutil.which(prefix[0])
        if program and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:  # noqa: S603
            return prefix
    return None


def _other_users(folder: Path, data: Path) -> Iterator[list[str]]:
    owner = (data if data.exists() else folder).stat()
    if owner.st_uid != 0:
        yield _switched_user(owner.st_uid, owner.st_gid)
        return
    if not data.exists():
        yield _switched_user(NOBODY, NOBODY)
    # On disk this is still root, so it fits only what root owns. For where user ids can't be switched.
    yield ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]


def _switched_user(uid: int, gid: int) -> list[str]:
    """Another user id that keeps one capability of root: to reach a checkout in a closed folder, such as /root.

    The secure bit keeps the capability effective in access(2), by which PostgreSQL looks for its own programs.
    """
    return [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--securebits=+no_setuid_fixup",
    ]


def _become(starter: int, command: list[str]) -> None:
    """Turn this process into the command, bound to the life of the starter.

    The death signal is asked for here, after any change of user id, because such a change clears it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job is born deaf to it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)  # SIGINT is PostgreSQL's fast shutdown
    if os.getppid() != starter:
        sys.exit("Who started PostgreSQL ended before it began")
    os.execv(command[0], command)  # noqa: S606 - no shell wanted


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
