"""What the front door writes to the log: who called what, how it ended and how long it took; never what was said."""

import logging
import time

import structlog

from server.logs import trace_of
from server.rpc.status import Failure

_log = structlog.get_logger(__name__)
_OVERLOAD_SECONDS = 1.0


class Journal:
    """A line for each failed call, and at level debug for the others too."""

    def __init__(self) -> None:
        self.tells_all: bool = _log.bind().is_enabled_for(logging.DEBUG)
        """Whether a call that ended well is told of too."""
        self._refused = 0
        self._refused_told = -_OVERLOAD_SECONDS

    def ended(self, rpc: str, failure: Failure | None, *, organization_id: str, subject: str, seconds: float) -> None:
        """Tell how a call ended."""
        tell = _log.debug if failure is None else _log.info
        tell(
            "call",
            rpc=rpc,
            grpc_code=failure.code.name if failure else "OK",
            reason=failure.reason if failure else "",
            organization_id=organization_id,
            subject=subject,
            milliseconds=round(seconds * 1000, 3),
        )

    def overloaded(self) -> None:
        """Tell that calls are refused for want of room: once a second, as a line for each would add to the load."""
        self._refused += 1
        if time.monotonic() - self._refused_told >= _OVERLOAD_SECONDS:
            _log.warning("overloaded", calls_refused=self._refused)
            self._refused, self._refused_told = 0, time.monotonic()

    def incident(self, rpc: str, incident_id: str, error: BaseException) -> None:
        """Tell of something unexpected: what kind and where, without its text, which may hold a destination."""
        _log.error("incident", alert=True, rpc=rpc, incident_id=incident_id, trace=trace_of(error))
