"""A proxy before PostgreSQL that loses a connection at a COMMIT: before it arrives, or after it was done.

The second loss comes before the answer reaches the client, which then cannot know whether it was committed.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class BreakAt(Enum):
    """The bytes at which the connection is lost."""

    COMMIT_SENT = b"COMMIT"
    COMMIT_DONE = b"COMMIT\x00"


class BreakingProxy:
    """Relays bytes. After `break_at` it loses the first connection on which those bytes appear, once."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._breaks_at: BreakAt | None = None
        self.breaks = 0
        self.accepted: list[asyncio.StreamWriter] = []
        self._relays: list[asyncio.Task[None]] = []

    def break_at(self, at: BreakAt) -> None:
        self._breaks_at = at

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start to relay a connection."""
        self.accepted.append(writer)
        self._relays.append(asyncio.create_task(self.relay(reader, writer)))

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until either side ends it or it is lost."""
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        directions = {
            asyncio.create_task(self._copy(reader, server_writer, BreakAt.COMMIT_SENT)),
            asyncio.create_task(self._copy(server_reader, writer, BreakAt.COMMIT_DONE)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also when the event loop ends meanwhile
            for end in (writer, server_writer):
                end.close()
        await asyncio.wait(directions)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, breaks_at: BreakAt) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                if self._breaks_at is breaks_at and breaks_at.value in data:
                    self._breaks_at = None
                    self.breaks += 1
                    return
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[tuple[BreakingProxy, str]]:
    """A proxy to the server of a connection URL, and the URL that leads through it."""
    parts = conninfo_to_dict(url)
    proxy = BreakingProxy(str(parts["host"]), int(str(parts["port"])))
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    async with server:
        yield proxy, make_conninfo(url, port=server.sockets[0].getsockname()[1])
    for writer in proxy.accepted:  # also of connections whose relay has not begun
        writer.transport.abort()
    await asyncio.sleep(0)
