"""Waiting for a condition that other tasks or processes make true, with one timeout for all tests."""

import asyncio
import inspect
import time
from collections.abc import Callable

SECONDS = 60.0
"""The longest time that a test waits for a condition."""


async def until(holds: Callable[[], object]) -> None:
    """Return once `holds()`, or its awaited result, is true. Raises AssertionError after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while True:
        found = holds()
        if await found if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.02)
