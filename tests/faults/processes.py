"""Real processes of Pulsa, which tests may kill."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.waiting import until

CHECKOUT = Path(__file__).parents[2]


class Process:
    """`python -m server COMMAND` with these settings and no others; its output goes to a file."""

    def __init__(self, command: str, settings: Mapping[str, str], *, output: Path) -> None:
        environment = {
            "PATH": os.defpath,
            "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'clients' / 'python'}",
            "PYTHONUNBUFFERED": "1",
            **settings,
        }
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "server", command],
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """All that it has printed, and logged."""
        return self._output.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT to the whole process group."""
        os.killpg(self._process.pid, signal.SIGINT)

    async def says(self, text: str) -> str:
        """The first line that holds the text, once it is there. Fails when the process ends without."""
        while True:
            ended = self._process.poll() is not None
            found = [line for line in self.output.splitlines() if text in line]
            if found:
                return found[0]
            assert not ended, self.output
            await asyncio.sleep(0.02)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        await until(lambda: self._process.poll() is not None)
        return self._process.wait()

    async def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        await self.ended()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, from below those that a system deals out to connections in the meantime."""
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = 10_000 + secrets.randbelow(22_000)
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
    return ports


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0
