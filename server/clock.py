"""What time it is, as something that can be handed in."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Gives the time of now, with its zone."""


def utc_now() -> datetime:
    """The machine's time."""
    return datetime.now(UTC)
