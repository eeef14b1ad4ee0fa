"""A proxy before a server, such as PostgreSQL, with the faults of a network and of a host."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class BreakAt(Enum):
    """The bytes at which a connection is lost: before COMMIT arrives, or after it was done.

    After the second loss the client cannot know whether it was committed.
    """

    COMMIT_SENT = b"COMMIT"
    COMMIT_DONE = b"COMMIT\x00"


_OF_A_STATEMENT_ALONE = {BreakAt.COMMIT_SENT: b"pulsa_", BreakAt.COMMIT_DONE: b"INSERT 0 1\x00"}


class Fault(Enum):
    """What happens to the bytes of every connection, old and new."""

    NONE = auto()
    SILENCE = auto()
    """No byte is taken from either side, as from a host that has vanished."""
    NO_ANSWER = auto()
    """The client's bytes are taken, and acknowledged by the network, but nothing comes back."""
    REFUSE = auto()
    """Open connections are reset, and new ones too, as of a server that is stopped."""


class FaultProxy:
    """Relays bytes. `break_at` loses the first connection on which its bytes appear, once; `set` starts a fault."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._breaks_at: BreakAt | None = None
        self._bytes = b""
        self._fault, self._may_pass = Fault.NONE, asyncio.Event()
        self._may_pass.set()
        self.breaks = 0
        self.delay_seconds = 0.0
        """Added to each answer of the server."""
        self.accepted: list[asyncio.StreamWriter] = []
        self._relays: list[asyncio.Task[None]] = []

    def break_at(self, at: BreakAt, *, statement_alone: bool = False) -> None:
        """Lose the first connection on which the bytes appear; of a statement alone, its name or its result."""
        self._breaks_at = at
        self._bytes = _OF_A_STATEMENT_ALONE[at] if statement_alone else at.value

    def set(self, fault: Fault) -> None:
        """Start the fault; NONE ends it."""
        self._fault = fault
        if fault is Fault.NONE:
            self._may_pass.set()
        else:
            self._may_pass.clear()
        if fault is Fault.REFUSE:
            self.reset()

    def reset(self) -> None:
        """Reset the open connections."""
        for writer in self.accepted:
            writer.transport.abort()
        self.accepted.clear()

    async def close(self) -> None:
        """End every connection on both sides.

        PostgreSQL drops no database while it waits for the password of a connection, for up to a minute.
        """
        self.reset()  # also connections whose relay has not begun
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start to relay a connection."""
        if self._fault is Fault.REFUSE:
            writer.transport.abort()
            return
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
            for direction in directions:
                direction.cancel()
        await asyncio.wait(directions)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, breaks_at: BreakAt) -> None:
        with suppress(ConnectionError):
            while data := await self._read(reader):
                if breaks_at is BreakAt.COMMIT_DONE and self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if self._breaks_at is breaks_at and self._bytes in data:
                    self._breaks_at = None
                    self.breaks += 1
                    return
                writer.write(data)
                await writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        if self._fault is Fault.SILENCE:
            await self._may_pass.wait()
        data = await reader.read(1 << 20)
        await self._may_pass.wait()
        return data


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[tuple[FaultProxy, str]]:
    """A proxy to the server of a connection URL, and the URL that leads through it."""
    parts = conninfo_to_dict(url)
    async with proxy_before(str(parts["host"]), int(str(parts["port"]))) as (proxy, port):
        # Without TLS, which Citus switches on by itself: the proxy reads what passes.
        yield proxy, make_conninfo(url, port=port, sslmode="disable")


@asynccontextmanager
async def proxy_before(host: str, port: int) -> AsyncIterator[tuple[FaultProxy, int]]:
    """A proxy to a server, and its port on 127.0.0.1."""
    proxy = FaultProxy(host, port)
    async with await asyncio.start_server(proxy.accept, "127.0.0.1", 0) as listening:
        yield proxy, listening.sockets[0].getsockname()[1]
    await proxy.close()
