"""Waiting for what happens elsewhere, without guessing how long it takes."""

import asyncio
import inspect
import time
from collections.abc import Callable

SECONDS = 60.0
"""The longest that a test waits for anything."""


async def until(holds: Callable[[], object]) -> None:
    """Return once it holds, or what it gives to await does; fail when neither is so in time."""
    deadline = time.monotonic() + SECONDS
    while True:
        found = holds()
        if await found if inspect.isawaitable(found) else found:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)
