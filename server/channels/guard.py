"""Around every provider: bounded concurrency, a circuit breaker, and metrics."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from prometheus_client import Counter, Histogram

from server.channels.breaker import Breaker, BreakerSettings
from server.channels.channel import Channel, Message, Outcome, OutcomeKind

_log = structlog.get_logger()

OUTCOMES = Counter(
    "pulsa_channel_outcomes",
    "Outcomes of deliveries by provider, those that the guard refused without asking the provider included.",
    ["provider", "outcome"],
)
SECONDS = Histogram(
    "pulsa_channel_seconds",
    "How long a provider took to answer one delivery.",
    ["provider"],
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
)


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """How much one provider is asked at once, and when it is left alone."""

    concurrency: int = 50
    wait_seconds: float = 5.0
    """For a free place; with the provider's own timeout this bounds a delivery, and must be less than its lease."""
    breaker: BreakerSettings = field(default_factory=BreakerSettings)


class Guard:
    """A channel that asks the one inside it when that makes sense, and never raises."""

    def __init__(
        self, channel: Channel, settings: GuardSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """One per provider, shared by all that send through it."""
        self.provider = channel.provider
        self._channel = channel
        self._wait_seconds = settings.wait_seconds
        self._places = asyncio.Semaphore(settings.concurrency)
        self._breaker = Breaker(channel.provider, settings.breaker, clock=clock)
        # Found once: looking labels up for each message costs more than counting it.
        self._outcomes = {kind: OUTCOMES.labels(channel.provider, kind.value) for kind in OutcomeKind}
        self._seconds = SECONDS.labels(channel.provider)

    async def deliver(self, message: Message) -> Outcome:
        """What the provider made of the message.

        NOT_SENT `busy` when no place came free in time, NOT_SENT `otp_expired` when the code was worthless by then,
        and `circuit_open` while the provider is left alone.
        """
        if self._places.locked():
            has_place = await self._wait_for_place()
        else:
            has_place = await self._places.acquire()  # at once, without the cost of a timeout
        if has_place:
            try:
                outcome = await self._ask(message)
            finally:
                self._places.release()
        else:
            outcome = Outcome(OutcomeKind.NOT_SENT, self.provider, failure_reason="busy", retry_after_seconds=1.0)
        self._outcomes[outcome.kind].inc()
        return outcome

    async def close(self) -> None:
        """Close the provider."""
        await self._channel.close()

    async def _wait_for_place(self) -> bool:
        """Whether a place came free in time; it is taken then."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await self._places.acquire()
        except TimeoutError:
            return False

    async def _ask(self, message: Message) -> Outcome:
        """One call of the provider, whose answer the breaker learns from, unless that makes no sense by now."""
        if message.expire_time <= datetime.now(UTC):
            return Outcome(OutcomeKind.NOT_SENT, self.provider, failure_reason="otp_expired")
        if refusal := self._breaker.refusal():
            return refusal
        outcome, began = None, time.perf_counter()
        try:
            outcome = await self._channel.deliver(message)
        except Exception as error:  # noqa: BLE001 - a fault of ours; its text may hold the message, so it ends here
            _log.error("delivery crashed", provider=self.provider, error=type(error).__name__)
            outcome = Outcome(OutcomeKind.UNKNOWN, self.provider, failure_reason="crashed")
        finally:
            self._seconds.observe(time.perf_counter() - began)
            if outcome is None:
                self._breaker.abandon()
            else:
                self._breaker.record(outcome)
        return outcome
