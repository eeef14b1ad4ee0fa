"""Stops asking a provider that fails, so that one alert stands for a thousand refunds."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from server.channels.channel import Outcome, OutcomeKind

_log = structlog.get_logger()

# Refusals that speak of one country, template or pair of numbers: whoever sends them must not stop everyone else.
_NARROW = frozenset(
    {"twilio_21408", "twilio_30007", "whatsapp_131056"}
    | {f"whatsapp_{code}" for code in (132000, 132001, 132005, 132007, 132008, 132012, 132015, 132016)}
)
# Meta's spam limit: each further try makes it worse.
_OPENS_AT_ONCE = frozenset({"whatsapp_131048"})
_WORKING = frozenset({OutcomeKind.ACCEPTED, OutcomeKind.REJECTED_DESTINATION})


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When to stop, and for how long."""

    failures_to_open: int = 5
    """So many failures in a row: refused configurations, transients and unknown outcomes alike."""
    cooldown_seconds: float = 30.0
    """After this one message is tried; the provider's own retry-after counts when it is longer."""


class Breaker:
    """Closed while a provider works; open after failures in a row; then one probe decides."""

    def __init__(self, provider: str, settings: BreakerSettings, *, clock: Callable[[], float]) -> None:
        """`clock` gives monotonic seconds."""
        self._provider = provider
        self._settings = settings
        self._clock = clock
        self._failures = 0
        self._cause: Outcome | None = None
        self._probe_time = 0.0
        self._probing = False

    def refusal(self) -> Outcome | None:
        """None when the provider may be asked, and then `record` or `abandon` must follow; else the answer to give.

        Open because of its configuration, it refuses for good, so that the next provider or a refund follows at once;
        open because of transient failures, it asks to come back after the cool-down.
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
            self._provider,
            failure_reason="circuit_open",
            retry_after_seconds=None if misconfigured else max(remaining, 1.0),
        )

    def record(self, outcome: Outcome) -> None:
        """Learn from one answer of the provider."""
        self._probing = False
        if outcome.kind in _WORKING or outcome.failure_reason in _NARROW:
            self._close()
            return
        self._failures += 1
        enough = self._failures >= self._settings.failures_to_open
        if enough or self._cause is not None or outcome.failure_reason in _OPENS_AT_ONCE:
            self._open(outcome)

    def abandon(self) -> None:
        """The call ended without an answer: if it was the probe, another may be made."""
        self._probing = False

    def _open(self, cause: Outcome) -> None:
        cooldown_seconds = max(self._settings.cooldown_seconds, cause.retry_after_seconds or 0.0)
        if self._cause is None:
            _log.error(
                "provider stopped: it failed too often",
                provider=self._provider,
                outcome=cause.kind.value,
                reason=cause.failure_reason,
                cooldown_seconds=cooldown_seconds,
            )
        self._cause = cause
        self._probe_time = self._clock() + cooldown_seconds

    def _close(self) -> None:
        if self._cause is not None:
            _log.warning("provider works again", provider=self._provider)
        self._cause = None
        self._failures = 0
