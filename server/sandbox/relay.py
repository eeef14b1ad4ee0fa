"""An SMTP relay on this machine: keeps what it gets, or fails at the step that it is told to."""

import asyncio
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final

DROP: Final = "drop"
"""Instead of a reply: reset the connection."""
HANG: Final = "hang"
"""Instead of a reply: say nothing, until the caller leaves."""

_REPLIES = {
    "GREETING": "220 relay ready",
    "EHLO": "250-relay\r\n250-ENHANCEDSTATUSCODES\r\n250 SMTPUTF8",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go ahead",
    "CONTENT": "250 2.0.0 queued",
    "RSET": "250 2.0.0 ok",
}


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that the relay took, dots still doubled."""

    envelope: tuple[str, ...]
    content: bytes


class Relay:
    """Speaks plain SMTP on 127.0.0.1; steps are named by their verb, or GREETING, or CONTENT for the final dot."""

    def __init__(self) -> None:
        """Listens from `async with` on."""
        self.mails: list[Mail] = []
        self.connections = 0
        self.port = 0
        self._next: defaultdict[str, deque[str]] = defaultdict(deque)
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._server: asyncio.Server | None = None

    def play(self, step: str, *replies: str) -> None:
        """The next times that a caller comes to this step, it gets these replies, DROP or HANG, in turn."""
        self._next[step].extend(replies)

    async def reached(self, step: str) -> None:
        """Wait until a caller has come to this step once."""
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
        self.connections += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):  # the caller left, or was made to
                await self._converse(reader, writer)
        finally:  # also when the event loop ends meanwhile
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._reply("GREETING", reader, writer)
        envelope: list[str] = []
        while True:
            line = (await reader.readuntil(b"\r\n")).decode().strip()
            verb = line[:4].upper()
            if verb == "MAIL":
                envelope = []
            if verb in {"MAIL", "RCPT"}:
                envelope.append(line)
            reply = await self._reply(verb, reader, writer)
            if verb == "DATA" and reply.startswith("354"):
                content = await reader.readuntil(b"\r\n.\r\n")
                if (await self._reply("CONTENT", reader, writer)).startswith("250"):
                    self.mails.append(Mail(tuple(envelope), content.removesuffix(b".\r\n")))

    async def _reply(self, step: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        self._reached[step].set()
        planned = self._next[step]
        reply = planned.popleft() if planned else _REPLIES.get(step, "502 5.5.1 not here")
        if reply == HANG:
            await reader.read(1)
        if reply in {DROP, HANG}:
            raise ConnectionResetError
        writer.write(f"{reply}\r\n".encode())
        await writer.drain()
        return reply
