"""The two hosts of PostgreSQL in `make soak`: proxies in a process of their own, as the load keeps its own one busy."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from tests.fault_proxy import Fault, proxy_to

_COUNT: Final = 2


class Hosts:
    """Begins with the first host serving and the second one refusing."""

    def __init__(self, process: asyncio.subprocess.Process, ports: list[str]) -> None:
        self._process = process
        self._serving = 0
        self.ports = ports

    async def fail_over(self, *, promotion_seconds: float) -> None:
        """Let the host that serves fall silent; after promotion_seconds the other one takes its place."""
        silent, self._serving = self._serving, 1 - self._serving
        await self._set(silent, Fault.SILENCE)
        await asyncio.sleep(promotion_seconds)
        await self._set(self._serving, Fault.NONE)
        await self._set(silent, Fault.REFUSE)

    async def _set(self, number: int, fault: Fault) -> None:
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("the process has pipes")
        self._process.stdin.write(f"{number} {fault.name}\n".encode())
        await self._process.stdin.drain()
        await self._process.stdout.readline()


@asynccontextmanager
async def open_hosts(url: str) -> AsyncIterator[Hosts]:
    """Run the proxies to the server of this URL."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, url, stdin=pipe, stdout=pipe)
    try:
        if process.stdout is None:
            raise ValueError("the process has pipes")
        yield Hosts(process, (await process.stdout.readline()).decode().split())
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _serve(url: str) -> None:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(proxy_to(url)) for _ in range(_COUNT)]
        proxies = [proxy for proxy, _ in opened]
        proxies[1].set(Fault.REFUSE)
        print(*(conninfo_to_dict(through)["port"] for _, through in opened), flush=True)  # noqa: T201 - for the parent
        while line := await asyncio.to_thread(sys.stdin.readline):
            number, fault = line.split()
            proxies[int(number)].set(Fault[fault])
            print("done", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
