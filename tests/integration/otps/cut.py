"""A wire to PostgreSQL that breaks at a COMMIT: just before it arrives, or after it was done and before its answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class At(Enum):
    """Where the wire breaks."""

    COMMIT_SENT = b"COMMIT"
    COMMIT_DONE = b"COMMIT\x00"


class Wire:
    """Relays bytes, until it is armed and sees what it waits for: then that connection is lost, once."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._breaks_at: At | None = None
        self.breaks = 0
        self.accepted: list[asyncio.StreamWriter] = []
        self._relays: list[asyncio.Task[None]] = []

    def break_at(self, at: At) -> None:
        self._breaks_at = at

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin with a connection."""
        self.accepted.append(writer)
        self._relays.append(asyncio.create_task(self.relay(reader, writer)))

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it or it breaks."""
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        directions = {
            asyncio.create_task(self._copy(reader, server_writer, At.COMMIT_SENT)),
            asyncio.create_task(self._copy(server_reader, writer, At.COMMIT_DONE)),
        }
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:  # also when the event loop ends meanwhile
            for end in (writer, server_writer):
                end.close()
        await asyncio.wait(directions)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, breaks_at: At) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                if self._breaks_at is breaks_at and breaks_at.value in data:
                    self._breaks_at = None
                    self.breaks += 1
                    return
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[tuple[Wire, str]]:
    """A wire to the server of a connection URL, and the URL that leads through it."""
    parts = conninfo_to_dict(url)
    wire = Wire(str(parts["host"]), int(str(parts["port"])))
    server = await asyncio.start_server(wire.accept, "127.0.0.1", 0)
    async with server:
        yield wire, make_conninfo(url, port=server.sockets[0].getsockname()[1])
    for writer in wire.accepted:  # also of those whose relay has not begun
        writer.transport.abort()
    await asyncio.sleep(0)
