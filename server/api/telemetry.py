"""Prometheus metrics and the access log of calls. Neither contains the contents of a message."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import structlog
from grpc import StatusCode
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.api.status import ErrorStatus
from server.logs import printable, safe_traceback

_log = structlog.get_logger(__name__)

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_GAUGE_SECONDS: Final = 1.0
_OVERLOAD_LOG_SECONDS: Final = 1.0
_LONGEST_SUBJECT: Final = 255


class RpcCounters(NamedTuple):
    """The metrics of one rpc. They start at zero, so that rates are correct from the first call."""

    ended: Mapping[StatusCode, Counter]
    duration: Histogram


class RpcMetrics:
    """The metrics of all rpcs, in one registry. Counting a call costs about 2 µs."""

    def __init__(self, registry: CollectorRegistry, *, in_flight: Callable[[], float]) -> None:
        self._requests = Counter(
            "pulsa_rpc_requests_total", "Finished calls by gRPC code.", ["rpc", "code"], registry=registry
        )
        self._duration = Histogram(
            "pulsa_rpc_duration_seconds",
            "Time from the arrival of a call to its response, in seconds.",
            ["rpc"],
            registry=registry,
            buckets=_BUCKETS,
        )
        self.overloaded = Counter(
            "pulsa_rpc_overloaded",
            "Calls that a concurrency limit refused; pulsa_rpc_requests_total has them as RESOURCE_EXHAUSTED.",
            registry=registry,
        )
        self._in_flight = in_flight
        self._gauge = Gauge(
            "pulsa_rpc_in_flight",
            "Calls in flight, including streams.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._gauge.set_function(in_flight)

    def of(self, rpc: str) -> RpcCounters:
        """Return the metrics of one rpc with bound labels: a lookup of labels costs more than counting."""
        ended = {code: self._requests.labels(rpc, code.name) for code in StatusCode}
        return RpcCounters(ended, self._duration.labels(rpc))

    async def publish_in_flight(self) -> None:
        """Write the number of calls in flight to the registry once a second, until cancelled.

        With several workers, the metrics endpoint adds up the written values.
        """
        while True:
            self._gauge.set(self._in_flight())
            await asyncio.sleep(_GAUGE_SECONDS)


class AccessLog:
    """Logs a line for each failed call, and for each successful call at level debug."""

    def __init__(self) -> None:
        self.logs_successes: bool = _log.bind().is_enabled_for(logging.DEBUG)
        """True when successful calls are logged."""
        self._refused_calls = 0
        self._refused_log_time = -_OVERLOAD_LOG_SECONDS

    def ended(
        self, rpc: str, status: ErrorStatus | None, *, organization_id: str, subject: str, seconds: float
    ) -> None:
        """Log the end of a call: OK when `status` is None. Ids are made printable, as the request may be invalid."""
        log = _log.debug if status is None else _log.info
        log(
            "call",
            rpc=rpc,
            grpc_code=status.code.name if status else "OK",
            reason=status.reason if status else "",
            organization_id=printable(organization_id),
            subject=printable(subject, _LONGEST_SUBJECT),
            milliseconds=round(seconds * 1000, 3),
        )

    def overloaded(self, in_flight: Mapping[str, int]) -> None:
        """Count a call that a concurrency limit refused, and log the count at most once a second to save load.

        `in_flight` are the calls in flight by organization.
        """
        self._refused_calls += 1
        if time.monotonic() - self._refused_log_time >= _OVERLOAD_LOG_SECONDS:
            most, calls = max(in_flight.items(), key=lambda each: each[1], default=("", 0))
            _log.warning(
                "overloaded", calls_refused=self._refused_calls, organization_id=printable(most), calls_in_flight=calls
            )
            self._refused_calls, self._refused_log_time = 0, time.monotonic()

    def incident(self, rpc: str, incident_id: str, error: BaseException) -> None:
        """Log an unexpected error: its type and traceback, without its text, which may contain a destination."""
        _log.error("incident", alert=True, rpc=rpc, incident_id=incident_id, trace=safe_traceback(error))
