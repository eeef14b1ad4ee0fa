"""A provider double that answers what a test sets, and the outcomes that tests use."""

import asyncio
from collections import deque

from server.providers.provider import Message, Outcome, OutcomeKind, Subject

ACCEPTED = Outcome(OutcomeKind.ACCEPTED, "double", "id-1")
NO_SUCH_NUMBER = Outcome(
    OutcomeKind.REJECTED_DESTINATION, "double", failure_reason="twilio_21211", about=Subject.DESTINATION
)
MISCONFIGURED = Outcome(OutcomeKind.REJECTED_CONFIGURATION, "double", failure_reason="twilio_20003")
DOWN = Outcome(OutcomeKind.NOT_SENT, "double", failure_reason="unreachable")
LOST = Outcome(OutcomeKind.UNKNOWN, "double", failure_reason="timeout")


class ProviderDouble:
    """Answers with the given outcomes, then ACCEPTED; waits while `may_answer` is not set."""

    def __init__(self, *answers: Outcome | Exception, provider: str = "double") -> None:
        self.name = provider
        self.answers = deque(answers)
        self.messages: list[Message] = []
        self.asked = asyncio.Semaphore(0)
        self.running = 0
        self.most_running = 0
        self.closed = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def deliver(self, message: Message) -> Outcome:
        self.messages.append(message)
        self.asked.release()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.may_answer.wait()
        finally:
            self.running -= 1
        answer = self.answers.popleft() if self.answers else ACCEPTED
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed = True

    @property
    def calls(self) -> int:
        return len(self.messages)

    async def until_asked(self, times: int = 1) -> None:
        for _ in range(times):
            await self.asked.acquire()
