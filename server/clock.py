"""The current time as a parameter, so that tests can set it; in the server it is the database's time."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog
from prometheus_client import Gauge

Clock = Callable[[], datetime]
"""Returns the current time, with its time zone."""

utc_now: Final[Clock] = partial(datetime.now, UTC)
"""The machine's clock, in UTC. The server works by a DatabaseClock; ids and tokens have the machine's time."""

SKEW: Final = Gauge(
    "pulsa_clock_skew_seconds", "The machine's clock minus the database's.", multiprocess_mode="livemostrecent"
)
_LARGEST_SKEW: Final = timedelta(seconds=2)
_STEP: Final = timedelta(seconds=1)
"""A smaller step of the database's clock is within the margin of a lease."""
_DRIFT: Final = 0.0011
"""By how much two clocks may run at different rates, and a little: the kernel adjusts each by at most 500 ppm."""
# Unlike time.monotonic() it goes on while the machine sleeps.
_since_boot: Final = partial(time.clock_gettime_ns, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

_log = structlog.get_logger(__name__)


class DatabaseClock:
    """The database's time, estimated: by it all replicas agree on leases, whatever their machines' clocks say.

    It is the time since boot plus what the database's clock showed at boot. A measurement bounds that: the database
    read its clock after it was asked and before the answer came. The bounds of all measurements are combined; each
    widens by the drift since. The estimate moves only when it is outside of them, so it is wrong by at most the
    shortest recent round trip, and steps of the machine's clock do nothing. Before the first measurement it is the
    machine's clock as it was when the object was created; a pool measures before its first connection is used.
    """

    def __init__(
        self,
        *,
        machine: Clock = utc_now,
        since_boot: Callable[[], int] = _since_boot,
    ) -> None:
        """`since_boot` returns nanoseconds that no step changes."""
        self._machine = machine
        self.since_boot = since_boot
        self.boot = machine() - self.elapsed()
        """The database's time at boot, as estimated."""
        self._earliest = self._latest = self.boot
        """The bounds of the true one, as of the last measurement."""
        self._measured: timedelta | None = None
        self._stepped: timedelta | None = None
        self.is_skewed = False
        """Whether the machine's clock and the database's certainly differ by more than 2 s."""

    def __call__(self) -> datetime:
        """The database's time now, in UTC."""
        return self.boot + timedelta(0, 0, self.since_boot() // 1000)

    def elapsed(self) -> timedelta:
        """The time since boot."""
        return timedelta(0, 0, self.since_boot() // 1000)

    @property
    def error(self) -> timedelta:
        """How much the estimate can be wrong, as of the last measurement."""
        return max(self._latest - self.boot, self.boot - self._earliest)

    @property
    def skew(self) -> timedelta:
        """The machine's clock minus the database's."""
        return self._machine() - self()

    async def measure(self, read: Callable[[], Awaitable[datetime]]) -> datetime:
        """Learn from one reading of the database's clock, and return it."""
        asked = self.elapsed()
        read_time = await read()
        self.learn(read_time, asked=asked)
        return read_time

    def learn(self, read_time: datetime, *, asked: timedelta) -> None:
        """Learn from a reading of the database's clock that has just arrived; `asked` is `elapsed()` before it."""
        answered = self.elapsed()
        drift = _DRIFT * (answered - asked)
        earliest, latest = read_time - answered - drift, read_time - asked + drift
        if self._measured is not None:
            drift = _DRIFT * (answered - self._measured)
            low, high = self._earliest - drift, self._latest + drift
            if earliest <= high and low <= latest:
                earliest, latest = max(earliest, low), min(latest, high)
            else:
                self._report_step(earliest - high if earliest > high else latest - low)
        self._earliest, self._latest, self._measured = earliest, latest, answered
        self.boot = min(max(self.boot, earliest), latest)
        self._report_skew()

    def has_stepped(self, *, within: timedelta) -> bool:
        """Whether the database's clock has jumped forward in this time, so that leases seem to have run out early.

        This includes another database host whose clock is ahead.
        """
        return self._stepped is not None and self.elapsed() - self._stepped < within

    def _report_step(self, step: timedelta) -> None:
        if abs(step) < _STEP:
            return
        if step > timedelta():
            self._stepped = self.elapsed()
        _log.warning("the database's clock stepped", seconds=round(step.total_seconds(), 3))

    def _report_skew(self) -> None:
        skew = self.skew
        SKEW.set(skew.total_seconds())
        is_skewed = abs(skew) > _LARGEST_SKEW + self.error
        if is_skewed and not self.is_skewed:
            _log.warning("the machine's clock differs from the database's", skew_seconds=round(skew.total_seconds(), 3))
        self.is_skewed = is_skewed
