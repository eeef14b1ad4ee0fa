"""Callers that send e-mails one after another and repeat an unanswered call with its request_id."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from pulsa.errors import PulsaError

from tests.faults.process_deployment import ProcessDeployment
from tests.waiting import until

CALLERS = 8


class Load:
    """The calls that were made, and their answers."""

    def __init__(self, deployment: ProcessDeployment, interval_seconds: float) -> None:
        self._site = deployment
        self._interval_seconds = interval_seconds
        self._stopped = False
        self.answers: dict[str, Any] = {}
        """By request_id, the first answer: the send was accepted."""
        self.repeats = 0
        """The number of calls that failed and were repeated with the same request_id."""

    async def wait_for_answers(self, count: int) -> None:
        """Return once `count` more sends were accepted."""
        wanted = len(self.answers) + count
        await until(lambda: len(self.answers) >= wanted)

    async def assert_charged_once(self, granted: int, *, other_sends: int = 0) -> None:
        """Fail unless every accepted send is stored unchanged and was charged exactly once.

        `other_sends` is the number of sends, at 1 credit each, that this load did not make.
        """
        concurrency = asyncio.Semaphore(CALLERS)

        async def repeat(request_id: str) -> Any:
            async with concurrency:
                return await self._send(request_id)

        again = await asyncio.gather(*map(repeat, self.answers))
        for answer, repeated in zip(self.answers.values(), again, strict=True):
            assert repeated.replayed
            assert (repeated.otp.otp_id, repeated.ledger_sequence) == (answer.otp.otp_id, answer.ledger_sequence)
        assert await self._site.balance() == granted - len(self.answers) - other_sends
        audit = await self._site.call("VerifyLedger")
        assert (audit.holds, audit.entry_count) == (True, 1 + len(self.answers) + other_sends)

    async def _keep_sending(self) -> None:
        while not self._stopped:
            request_id = str(uuid4())
            while request_id not in self.answers:
                try:
                    self.answers[request_id] = await self._send(request_id)
                except PulsaError:
                    self.repeats += 1
                    await self._site.channel.channel_ready()
            await asyncio.sleep(self._interval_seconds)

    async def _send(self, request_id: str) -> Any:
        return await self._site.send(email=f"{request_id}@mail.example", request_id=request_id)


@asynccontextmanager
async def under_load(
    deployment: ProcessDeployment, *, callers: int = CALLERS, interval_seconds: float = 0
) -> AsyncIterator[Load]:
    """Run callers during the block, each with an interval between two sends. On exit each waits for its last answer."""
    load = Load(deployment, interval_seconds)
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(load._keep_sending())
        try:
            yield load
        finally:
            load._stopped = True
