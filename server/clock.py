"""The current time as a parameter, so that tests can set it."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final

Clock = Callable[[], datetime]
"""Returns the current time, with its time zone."""

utc_now: Final[Clock] = partial(datetime.now, UTC)
"""The system clock, in UTC."""
