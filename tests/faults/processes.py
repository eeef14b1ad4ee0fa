"""`python -m server` in processes of its own, which a test can signal and kill."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.waiting import SECONDS, until

CHECKOUT = Path(__file__).parents[2]


class Process:
    """`python -m server COMMAND` with only these settings in its environment; its output goes to a file."""

    def __init__(self, command: str, settings: Mapping[str, str], *, output: Path, checkout: Path = CHECKOUT) -> None:
        """`command` may have arguments, separated by spaces; `checkout` is the folder of the code that runs."""
        environment = {
            "PATH": os.defpath,
            "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'clients' / 'python'}",
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(  # noqa: S603 - the project's own program
                [sys.executable, "-m", "server", *command.split()],
                cwd=checkout,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """Everything that it has printed and logged so far."""
        return self._output.read_text()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def interrupt(self) -> None:
        """Send SIGINT to the whole process group, as Ctrl-C in a terminal does."""
        os.killpg(self._process.pid, signal.SIGINT)

    async def wait_for_output(self, text: str) -> str:
        """Return the first line with this text once it is printed.

        Fails, with what was printed, after SECONDS, or if the process ends without the text.
        """
        deadline = time.monotonic() + SECONDS
        while True:
            ended = self._process.poll() is not None
            if found := [line for line in self.output.splitlines() if text in line]:
                return found[0]
            assert not ended, f"ended without {text!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"{SECONDS:g} s passed without {text!r}:\n{self.output}"
            await asyncio.sleep(0.02)

    async def wait_for_exit(self) -> int:
        """Return the exit code once it has ended."""
        await until(lambda: self._process.poll() is not None)
        return self._process.wait()

    async def kill(self) -> None:
        """Send SIGKILL, and wait until it has ended."""
        self._process.kill()
        await self.wait_for_exit()


def free_ports(count: int) -> list[int]:
    """Unused ports, below the range from which the system chooses ports for outgoing connections."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = 10_000 + secrets.randbelow(22_000)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
    return ports


def listens(port: int) -> bool:
    """Whether a process listens on the port."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0
