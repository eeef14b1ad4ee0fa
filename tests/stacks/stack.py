"""A program of a gRPC stack that runs."""

import asyncio
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from tests.stacks.programs import Programs
from tests.waiting import until


class Stack:
    """A program in one of its modes, for an organization of its own."""

    def __init__(self, process: Process, organization: str) -> None:
        self._process = process
        self.organization = organization
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            self.lines.append(line.decode().strip())

    async def prints(self, line: str) -> None:
        """Return once it has printed the line, or fail if it ends without it."""
        await self._until(lambda: line in self.lines)

    async def sends(self, count: int) -> None:
        """Return once it has sent so many more."""
        wanted = len(self.lines) + count
        await self._until(lambda: len(self.lines) >= wanted)

    async def _until(self, holds: Callable[[], bool]) -> None:
        with suppress(AssertionError):
            await until(lambda: holds() or self._reading.done())
        assert holds(), (self.organization, self.lines[-5:])

    async def ended(self) -> list[str]:
        """Close its standard input; all that it has printed, once it has ended well."""
        assert self._process.stdin
        self._process.stdin.close()
        await self._reading
        assert await self._process.wait() == 0, self.lines
        return self.lines

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def running(
    programs: Programs, stack: str, *, address: str, token: str, organization: str, mode: str, callers: int = 1
) -> AsyncIterator[Stack]:
    """Run the stack's program in a mode; `callers` at once is for the clients of this project only."""
    arguments = (address, token, organization, mode, *([str(callers)] if callers > 1 else []))
    process = await asyncio.create_subprocess_exec(
        *programs.command(stack), *arguments, stdin=PIPE, stdout=PIPE, env=os.environ | programs.environment
    )
    started = Stack(process, organization)
    try:
        yield started
    finally:
        await started.kill()
