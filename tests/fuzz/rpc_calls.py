"""Calls of any rpc with any bytes as the request message."""

import asyncio
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

import grpc

from tests.callers import RPCS
from tests.fuzz.environment import FuzzEnvironment
from tests.fuzz.messages import MARKER
from tests.fuzz.mutations import Mutator

CALLERS = 24
SERVER_FAULTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""Codes that no message may be answered with, as the fault would be the server's. Every rpc is implemented."""
_SECONDS = 30
"""The timeout of a call; DEADLINE_EXCEEDED is a finding too."""
_UNUSUAL_METADATA = 0.05
"""The share of the calls with invalid or additional metadata."""

Message = tuple[str, bytes]
"""The name of an rpc, and a request message for it."""


class RpcCaller:
    """Makes calls, and counts their results."""

    def __init__(self, environment: FuzzEnvironment, random: Random) -> None:
        self._channel = environment.deployment.channel
        self._token = environment.deployment.token(organization_id="*", lifetime_seconds=86_400)
        self._random = random
        self._mutator = Mutator(random)
        self.results: Counter[tuple[str, str]] = Counter()
        """The number of calls, by rpc and status."""
        self.findings: list[str] = []

    async def make(self, messages: Iterable[Message]) -> None:
        """Make one call for each message, CALLERS at a time."""
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
            self.results[rpc, "CANCELED BY CALLER"] += 1
            return
        try:
            await (call.read() if method.server_streaming else call)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
        call.cancel()
        self.results[rpc, code.name] += 1
        if code in SERVER_FAULTS | {grpc.StatusCode.DEADLINE_EXCEEDED}:
            self.findings.append(f"{rpc} {code.name}: {b64encode(payload).decode()}")

    def _metadata(self) -> list[tuple[str, str | bytes]]:
        token, random = self._token, self._random
        if random.random() >= _UNUSUAL_METADATA:
            return [("authorization", f"Bearer {token}")]
        mutated = self._mutator.mutate(token.encode())[:6000].decode("latin-1")
        printable = "".join(letter for letter in mutated if " " <= letter <= "~")
        return [
            (
                "authorization",
                random.choice([f"Bearer {MARKER}{printable}", f"bearer {token}", f"Basic {MARKER}", MARKER]),
            ),
            ("x-note", MARKER),
            ("x-note-bin", MARKER.encode() + random.randbytes(random.choice((0, 8, 500)))),
        ]
