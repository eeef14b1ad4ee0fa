"""Starts a PostgreSQL program as a user that PostgreSQL accepts, and ends it when its starter ends.

This file is also run as a script, as the last step of that start. It uses the standard library only.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

NOBODY_ID = 65534  # the user and group "nobody"
PR_SET_PDEATHSIG = 1  # prctl(2)


def launch(
    program: Path, arguments: Sequence[str], *, prefix: Sequence[str], log: int, lock: int
) -> subprocess.Popen[bytes]:
    """Start a PostgreSQL program under the command prefix of `user_prefix`.

    `log` and `lock` are file descriptors: the output goes to `log`, and every process of the program inherits `lock`.
    When the calling thread ends for any reason, the kernel signals the program to shut down (Linux only). The program
    gets a session of its own, so that a Ctrl-C in the terminal reaches only the caller, which stops PostgreSQL last.
    """
    script = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid())]
    return subprocess.Popen(  # noqa: S603 - paths and settings from this package, without a shell
        [*prefix, *script, str(program), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[lock],
        cwd="/",
        env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath},
        start_new_session=True,
    )


def user_prefix(folder: Path, data: Path) -> list[str] | None:
    """The command prefix that starts PostgreSQL under a user id that it accepts: PostgreSQL refuses to run as root.

    Empty for a normal user. None when root can switch to no other user.
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
        yield _switched_user(NOBODY_ID, NOBODY_ID)
    # For systems that do not allow switching user ids. File access is still root's, so this needs a folder of root.
    yield ["unshare", "--user", f"--map-user={NOBODY_ID}", f"--map-group={NOBODY_ID}"]


def _switched_user(uid: int, gid: int) -> list[str]:
    """A setpriv command for another user id that keeps one capability of root: dac_override.

    With it PostgreSQL reaches a checkout in a folder that is closed to others, such as /root. The secure bit keeps the
    capability effective in access(2), with which PostgreSQL looks for its own programs.
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


def _exec(starter: int, command: list[str]) -> None:
    """Replace this process by the command, which is signalled when the starter's thread ends.

    The parent-death signal is set here, after any change of user id, because such a change clears it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job of a shell inherits it as ignored
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)  # SIGINT is PostgreSQL's fast shutdown
    if os.getppid() != starter:
        sys.exit("The process that starts PostgreSQL ended before PostgreSQL started")
    os.execv(command[0], command)  # noqa: S606 - without a shell, on purpose


if __name__ == "__main__":
    _exec(int(sys.argv[1]), sys.argv[2:])
