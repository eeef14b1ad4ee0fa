"""A small pooler for PostgreSQL, which lends its sessions to clients for a transaction or for a whole connection."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

_HEADER = struct.Struct("!ci")


class Session:
    """A session of PostgreSQL that was opened by psycopg, and whose bytes are relayed from then on."""

    def __init__(self, connection: AsyncConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection = connection  # its end would end the session
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, url: str) -> "Session":
        connection = await AsyncConnection.connect(url, sslmode="disable", autocommit=True)
        reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=os.dup(connection.pgconn.socket)))
        return cls(connection, reader, writer)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()
        await self._connection.close()


class Pooler:
    """Has a number of sessions. A client gets the one that came back last, as PgBouncer does."""

    def __init__(self, sessions: list[Session], *, per_transaction: bool, remembers_standby: bool) -> None:
        self._free: asyncio.LifoQueue[Session] = asyncio.LifoQueue()
        for session in sessions:
            self._free.put_nowait(session)
        self._per_transaction = per_transaction
        self._settings = {
            "server_version": "15.0",
            "client_encoding": "UTF8",
            "standard_conforming_strings": "on",
            # PgBouncer reports what its first session did: "on" for as long as it runs, if that was a standby's.
            "in_hot_standby": "on" if remembers_standby else "off",
            "default_transaction_read_only": "off",
        }
        self._next_process_id = 1_000_000_000  # no process id of PostgreSQL

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client until it leaves."""
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        self._next_process_id += 1
        writer.write(_message(b"R", struct.pack("!i", 0)))
        for name, value in self._settings.items():
            writer.write(_message(b"S", f"{name}\0{value}\0".encode()))
        writer.write(_message(b"K", struct.pack("!ii", self._next_process_id, 0)))
        writer.write(_message(b"Z", b"I"))
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._relay(reader, writer)
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = None
        try:
            while (message := await _read(reader))[:1] != b"X":
                session = session or await self._free.get()
                session.writer.write(message)
                if message[:1] not in b"QS":  # more of the same request follows
                    continue
                status = b""
                while not status:
                    answer = await _read(session.reader)
                    writer.write(answer)
                    status = answer[5:] if answer[:1] == b"Z" else b""
                if self._per_transaction and status == b"I":
                    self._free.put_nowait(session)
                    session = None
        finally:
            if session is not None:
                self._free.put_nowait(session)


@asynccontextmanager
async def pooler_to(
    url: str, *, sessions: int, per_transaction: bool, remembers_standby: bool = False
) -> AsyncIterator[str]:
    """The URL of a pooler before the database of `url`."""
    opened = [await Session.open(url) for _ in range(sessions)]
    pooler = Pooler(opened, per_transaction=per_transaction, remembers_standby=remembers_standby)
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    async with server:
        # Without TLS, which Citus switches on by itself: the pooler reads what passes.
        yield make_conninfo(url, port=server.sockets[0].getsockname()[1], sslmode="disable")
    for session in opened:
        await session.close()


def _message(kind: bytes, body: bytes) -> bytes:
    return _HEADER.pack(kind, len(body) + 4) + body


async def _read(reader: asyncio.StreamReader) -> bytes:
    header = await reader.readexactly(_HEADER.size)
    return header + await reader.readexactly(_HEADER.unpack(header)[1] - 4)
