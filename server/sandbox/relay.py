"""A stand-in for an SMTP relay: stores each mail, or fails at a step as scripted."""

import asyncio
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final

DROP: Final = "drop"
"""Instead of a reply: reset the connection."""
HANG: Final = "hang"
"""Instead of a reply: stay silent until the client disconnects."""

_REPLIES = {
    "GREETING": "220 relay ready",
    "EHLO": "250-relay\r\n250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go ahead",
    "CONTENT": "250 2.0.0 queued",
    "RSET": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
}


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that the relay accepted; its leading dots are still doubled (RFC 5321, 4.5.2)."""

    envelope: tuple[str, ...]
    content: bytes
    began: float
    """When its MAIL command arrived, or its connection if it was the first: time.monotonic()."""
    accepted: float
    """When the relay had accepted it."""


class Relay:
    """Speaks SMTP without TLS on 127.0.0.1.

    A step is named by its command, or GREETING for the connection, or CONTENT for the final dot.
    """

    def __init__(self) -> None:
        """It listens inside `async with`."""
        self.mails: list[Mail] = []
        self.connections = 0
        self.port = 0
        self.delay_seconds = 0.0
        """Before the reply to the final dot."""
        self.maximum_connections = 1_000_000
        """Further ones are refused with 421."""
        self.mails_per_session = 1_000_000
        """After which MAIL is refused with 421."""
        self.open = self.most_open = self.refused = self.quits = 0
        self._next: defaultdict[str, deque[str]] = defaultdict(deque)
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._server: asyncio.Server | None = None

    def play(self, step: str, *replies: str) -> None:
        """Answer this step with these replies, DROP or HANG, in this order; then with the usual reply again."""
        self._next[step].extend(replies)

    def has_played(self, step: str) -> bool:
        """Whether every planned reply to this step was given."""
        return not self._next[step]

    async def reached(self, step: str) -> None:
        """Return once a client has reached this step."""
        await self._reached[step].wait()

    async def __aenter__(self) -> "Relay":
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.open >= self.maximum_connections:
            self.refused += 1
            self.play("GREETING", "421 4.7.0 too many connections")
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):  # the client disconnected, or was disconnected
                await self._converse(reader, writer)
        finally:  # also when the event loop ends meanwhile
            self.open -= 1
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await self._reply("GREETING", reader, writer)).startswith("421"):
            return
        envelope: list[str] = []
        began = time.monotonic()
        left = self.mails_per_session
        while True:
            line = (await reader.readuntil(b"\r\n")).decode().strip()
            verb = line[:4].upper()
            if verb == "QUIT":
                self.quits += 1
            if verb == "MAIL":
                left -= 1
                if left < 0:
                    self.play("MAIL", "421 4.7.0 too many mails in this session")
                envelope, began = [], began or time.monotonic()
            if verb in {"MAIL", "RCPT"}:
                envelope.append(line)
            reply = await self._reply(verb, reader, writer)
            if reply[:3] in {"221", "421"}:
                return
            if verb == "DATA" and reply.startswith("354"):
                content = await reader.readuntil(b"\r\n.\r\n")
                await asyncio.sleep(self.delay_seconds)
                if (await self._reply("CONTENT", reader, writer)).startswith("250"):
                    content = content.removesuffix(b".\r\n")
                    self.mails.append(Mail(tuple(envelope), content, began, time.monotonic()))
                began = 0.0

    async def _reply(self, step: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        self._reached[step].set()
        planned = self._next[step]
        reply = planned.popleft() if planned else _REPLIES.get(step, "502 5.5.1 command not implemented")
        if reply == HANG:
            await reader.read(1)
        if reply in {DROP, HANG}:
            raise ConnectionResetError
        writer.write(f"{reply}\r\n".encode())
        await writer.drain()
        return reply
