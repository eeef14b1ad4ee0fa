"""The guard around each provider: limits its concurrency, opens a circuit breaker, and counts outcomes."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client import Counter, Histogram

from server.clock import Clock
from server.providers.provider import Message, Outcome, OutcomeKind, Provider, Subject
from server.traces import Span, current_span

LEASE_MARGIN: Final = timedelta(seconds=2)
"""Between the latest end of a provider call and the end of the lease: to store the outcome, and as clocks differ."""

_log = structlog.get_logger()

OUTCOMES = Counter(
    "pulsa_channel_outcomes",
    "Outcomes of deliveries by provider, also of those that ended before the provider was called, as by its breaker.",
    ["provider", "outcome"],
)
ACCOUNT_REFUSALS = Counter(
    "pulsa_channel_account_refusals",
    "Messages that a provider refused because of our account or settings, as for credentials or a balance.",
    ["provider"],
)
SECONDS = Histogram(
    "pulsa_channel_seconds",
    "How long a provider took to answer, in seconds.",
    ["provider"],
    buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 60),
)

# Meta's spam limit, which every further attempt makes worse: opens the breaker after one failure.
_OPENS_IMMEDIATELY = frozenset({"whatsapp_131048"})
_FIRST_PAUSE_SECONDS: Final = 1.0
# Such an answer shows that the provider works.
_WORKS = frozenset({Subject.DESTINATION, Subject.ROUTE})


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a circuit breaker opens, and for how long."""

    failures_to_open: int = 5
    """Failures in a row after which it opens: outcomes about our account or the provider that are not ACCEPTED."""
    cooldown_seconds: float = 30.0
    """After this one message is sent as a probe. The provider's Retry-After applies if it is longer.

    While a provider cannot be reached, a probe loses nothing: the first is sent after a second, and the pause doubles
    up to this. A burst of connections that are not opened in time is such a failure too.
    """


class Breaker:
    """A circuit breaker: closed while the provider works, opened by failures in a row, closed again by one probe."""

    def __init__(self, provider_name: str, settings: BreakerSettings, *, clock: Callable[[], float]) -> None:
        """`clock` returns monotonic seconds."""
        self._provider_name = provider_name
        self._settings = settings
        self._clock = clock
        self._failures = 0
        self._cause: Outcome | None = None
        self._probe_time = 0.0
        self._probing = False
        self._pause_seconds = 0.0

    def refusal(self) -> Outcome | None:
        """The outcome without calling the provider; None when it may be called: `record` or `abandon` must follow.

        Opened by a refused configuration, the breaker returns REJECTED_CONFIGURATION, so that the next provider or a
        refund follows without a retry. Opened by another failure, it returns NOT_SENT with the rest of the cooldown.
        """
        if self._cause is None:
            return None
        remaining = self._probe_time - self._clock()
        if remaining <= 0 and not self._probing:
            self._probing = True
            return None
        misconfigured = self._cause.kind is OutcomeKind.REJECTED_CONFIGURATION
        return Outcome(
            OutcomeKind.REJECTED_CONFIGURATION if misconfigured else OutcomeKind.NOT_SENT,
            self._provider_name,
            failure_reason="circuit_open",
            retry_after_seconds=None if misconfigured else max(remaining, 1.0),
        )

    def record(self, outcome: Outcome) -> None:
        """Count the outcome of a provider call. One about a session says nothing of the provider."""
        self._probing = False
        if outcome.kind is OutcomeKind.ACCEPTED or outcome.about in _WORKS:
            self._close()
            return
        if outcome.about is Subject.SESSION:
            return
        self._failures += 1
        enough = self._failures >= self._settings.failures_to_open
        if enough or self._cause is not None or outcome.failure_reason in _OPENS_IMMEDIATELY:
            self._open(outcome)

    def abandon(self) -> None:
        """End a call without an outcome: if it was the probe, another probe may be sent."""
        self._probing = False

    def _open(self, cause: Outcome) -> None:
        now, longest = self._clock(), self._settings.cooldown_seconds
        if self._cause is None or now >= self._probe_time:  # not another call that began before it opened
            self._pause_seconds = min(longest, 2 * self._pause_seconds or _FIRST_PAUSE_SECONDS)
        loses_nothing = (
            cause.kind is OutcomeKind.NOT_SENT
            and cause.about is Subject.PROVIDER
            and cause.failure_reason not in _OPENS_IMMEDIATELY
        )
        cooldown_seconds = max(self._pause_seconds if loses_nothing else longest, cause.retry_after_seconds or 0.0)
        if self._cause is None:
            _log.error(
                "provider stopped: it failed too often",
                provider=self._provider_name,
                outcome=cause.kind.value,
                reason=cause.failure_reason,
                about=cause.about.value,
                cooldown_seconds=cooldown_seconds,
            )
        self._cause = cause
        self._probe_time = max(self._probe_time, now + cooldown_seconds)

    def _close(self) -> None:
        if self._cause is not None:
            _log.warning("provider works again", provider=self._provider_name)
        self._cause = None
        self._failures = 0
        self._pause_seconds = 0.0


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """The limits of one provider."""

    concurrency: int = 50
    """Calls of the provider at the same time."""
    wait_seconds: float = 5.0
    """Longest wait for a concurrency slot."""
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    timeout_seconds: float = 0.0
    """Longest time of a call until its message has left. A call that might outlast the lease before does not begin."""


class Guard:
    """A Provider that calls another one, unless its breaker is open or its slots are taken. `deliver` never raises."""

    def __init__(
        self,
        provider: Provider,
        settings: GuardSettings,
        *,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`monotonic` returns seconds, for the circuit breaker."""
        self.name = provider.name
        self._provider = provider
        self._wait_seconds = settings.wait_seconds
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._breaker = Breaker(provider.name, settings.breaker, clock=monotonic)
        self._clock = clock
        self._longest = timedelta(seconds=settings.timeout_seconds) + LEASE_MARGIN
        # Looked up once: looking labels up for each message costs more than counting it.
        self._outcomes = {kind: OUTCOMES.labels(provider.name, kind.value) for kind in OutcomeKind}
        self._account_refusals = ACCOUNT_REFUSALS.labels(provider.name)
        self._seconds = SECONDS.labels(provider.name)

    async def deliver(self, message: Message) -> Outcome:
        """The outcome of the provider call, or of the guard.

        The guard's failure reasons: `busy` (no slot became free in time), `otp_expired` (before a slot was free),
        `lease_ended` (too little of it is left, as after a freeze: another replica may be sending), `circuit_open` (see
        Breaker.refusal), and `crashed` (the provider raised).
        """
        if self._slots.locked():
            has_slot = await self._wait_for_slot()
        else:
            has_slot = await self._slots.acquire()  # does not wait, so it needs no costly timeout
        if has_slot:
            try:
                outcome = await self._call(message)
            finally:
                self._slots.release()
        else:
            outcome = Outcome(OutcomeKind.NOT_SENT, self.name, failure_reason="busy", retry_after_seconds=1.0)
        self._outcomes[outcome.kind].inc()
        return outcome

    async def close(self) -> None:
        """Close the provider."""
        await self._provider.close()

    async def _wait_for_slot(self) -> bool:
        """Whether a slot became free in time; it is acquired then."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await self._slots.acquire()
        except TimeoutError:
            return False

    async def _deliver(self, message: Message, span: Span) -> Outcome:
        with span.child(f"provider {self.name}", {}) as call:
            outcome = await self._provider.deliver(message)
            call.set(outcome.identifiers)
            return outcome

    async def _call(self, message: Message) -> Outcome:
        """Call the provider, unless it is too late or the breaker is open; the breaker counts the outcome."""
        now = self._clock()
        if message.expire_time <= now:
            return Outcome(OutcomeKind.NOT_SENT, self.name, failure_reason="otp_expired")
        if message.lease_expire_time < now + self._longest:
            return Outcome(OutcomeKind.NOT_SENT, self.name, failure_reason="lease_ended")
        if refusal := self._breaker.refusal():
            return refusal
        outcome, began = None, time.perf_counter()
        try:
            span = current_span()
            outcome = await (self._provider.deliver(message) if span is None else self._deliver(message, span))
            if message.sender_id and outcome.about is Subject.ACCOUNT:
                # It may be about the sender that an organization has chosen: the others' messages go on.
                outcome = outcome._replace(about=Subject.ROUTE)
            if outcome.kind is OutcomeKind.REJECTED_CONFIGURATION and outcome.about is Subject.ACCOUNT:
                self._account_refusals.inc()
        except Exception as error:  # noqa: BLE001 - a bug here; its text may quote the message, so it is not logged
            _log.error("delivery crashed", provider=self.name, error=type(error).__name__)
            outcome = Outcome(OutcomeKind.UNKNOWN, self.name, failure_reason="crashed")
        finally:
            self._seconds.observe(time.perf_counter() - began)
            if outcome is None:
                self._breaker.abandon()
            else:
                self._breaker.record(outcome)
        return outcome
