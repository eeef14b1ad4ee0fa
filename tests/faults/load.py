"""Callers that send one e-mail after another, and repeat what was not answered, as callers should."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from pulsa.errors import PulsaError

from tests.faults.site import Site
from tests.waiting import until

CALLERS = 8


class Load:
    """What became of each request_id."""

    def __init__(self, site: Site, pause_seconds: float) -> None:
        self._site = site
        self._pause_seconds = pause_seconds
        self._over = False
        self.answers: dict[str, Any] = {}
        """The first answer to each request_id: the send is accepted."""
        self.repeats = 0
        """Calls that failed and were made again with the same request_id."""

    async def has_answers(self, count: int) -> None:
        """Return once so many more sends were accepted."""
        wanted = len(self.answers) + count
        await until(lambda: len(self.answers) >= wanted)

    async def is_charged_once(self, granted: int) -> None:
        """Fail unless every accepted send is there, unchanged, and was charged exactly once."""
        a_few_at_once = asyncio.Semaphore(CALLERS)

        async def repeat(request_id: str) -> Any:
            async with a_few_at_once:
                return await self._send(request_id)

        again = await asyncio.gather(*map(repeat, self.answers))
        for answer, repeated in zip(self.answers.values(), again, strict=True):
            assert repeated.replayed
            assert (repeated.otp.otp_id, repeated.ledger_sequence) == (answer.otp.otp_id, answer.ledger_sequence)
        assert await self._site.balance() == granted - len(self.answers)
        audit = await self._site.call("VerifyLedger")
        assert (audit.holds, audit.entry_count) == (True, 1 + len(self.answers))

    async def _keep_sending(self) -> None:
        while not self._over:
            request_id = str(uuid4())
            while request_id not in self.answers:
                try:
                    self.answers[request_id] = await self._send(request_id)
                except PulsaError:
                    self.repeats += 1
                    await self._site.channel.channel_ready()
            await asyncio.sleep(self._pause_seconds)

    async def _send(self, request_id: str) -> Any:
        return await self._site.send(email=f"{request_id}@mail.example", request_id=request_id)


@asynccontextmanager
async def under_load(site: Site, *, callers: int = CALLERS, pause_seconds: float = 0) -> AsyncIterator[Load]:
    """Callers at work for the block, who rest between two sends; at its end each waits for its last answer."""
    load = Load(site, pause_seconds)
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(load._keep_sending())
        try:
            yield load
        finally:
            load._over = True
