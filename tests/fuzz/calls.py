"""Messages on their way to the server, as bytes: whatever they are, they leave."""

import asyncio
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

import grpc

from tests.callers import RPCS
from tests.fuzz.ground import Ground
from tests.fuzz.messages import MARKER
from tests.fuzz.mutations import Mutator

CALLERS = 24
OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNIMPLEMENTED}
"""What no message may be answered with: the fault would be Pulsa's. An rpc that is there is implemented."""
_SECONDS = 30
"""The longest that an answer may take; DEADLINE_EXCEEDED then is a finding too."""
_STRANGE = 0.05
"""The part of the calls with metadata that nobody should send."""

Message = tuple[str, bytes]
"""The rpc and the request."""


class Calls:
    """Makes calls, and notes how they ended."""

    def __init__(self, ground: Ground, random: Random) -> None:
        self._channel = ground.site.channel
        self._token = ground.site.token(organization_id="*", lifetime_seconds=86_400)
        self._random = random
        self._mutator = Mutator(random)
        self.ends: Counter[tuple[str, str]] = Counter()
        """By rpc and status."""
        self.findings: list[str] = []

    async def make(self, messages: Iterable[Message]) -> None:
        """Make a call of each message, several at once."""
        waiting = iter(messages)

        async def caller() -> None:
            for rpc, payload in waiting:
                await self._make(rpc, payload)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def _make(self, rpc: str, payload: bytes) -> None:
        method = RPCS[rpc]
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        start: Any = kind(f"/{method.containing_service.full_name}/{rpc}")
        call = start(payload, metadata=self._metadata(), timeout=_SECONDS)
        if self._random.random() < 0.01:
            call.cancel()
            self.ends[rpc, "left"] += 1
            return
        try:
            await (call.read() if method.server_streaming else call)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
        call.cancel()
        self.ends[rpc, code.name] += 1
        if code in OURS | {grpc.StatusCode.DEADLINE_EXCEEDED}:
            self.findings.append(f"{rpc} {code.name}: {b64encode(payload).decode()}")

    def _metadata(self) -> list[tuple[str, str | bytes]]:
        token, random = self._token, self._random
        if random.random() >= _STRANGE:
            return [("authorization", f"Bearer {token}")]
        spoiled = self._mutator.mutate(token.encode())[:6000].decode("latin-1")
        printable = "".join(letter for letter in spoiled if " " <= letter <= "~")
        return [
            (
                "authorization",
                random.choice([f"Bearer {MARKER}{printable}", f"bearer {token}", f"Basic {MARKER}", MARKER]),
            ),
            ("x-note", MARKER),
            ("x-note-bin", MARKER.encode() + random.randbytes(random.choice((0, 8, 500)))),
        ]
