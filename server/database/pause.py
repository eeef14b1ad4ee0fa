"""How work that waits for others gives way to them."""

import asyncio
import os
import time
from typing import Final

_LONG_SECONDS: Final = 0.001
"""Those that this is meant for take less: gRPC's polling thread (see rpc/poller.py), or a PostgreSQL that has only this
processor."""
_REST_SECONDS: Final = 0.1
_SLEEP_SECONDS: Final = 0.001


class Pause:
    """Lets the event loop turn once, and before that whoever waits for this processor.

    To yield costs next to nothing where few others run. Where a stranger keeps the processor busy he gets a slice of
    time for each yield, so whoever lost one sleeps for a while instead of yielding: a sleeper's turn comes soon.
    """

    def __init__(self) -> None:
        self._sleeps_until = 0.0

    async def __call__(self) -> None:
        """Give way once."""
        began = time.monotonic()
        if began < self._sleeps_until:
            await asyncio.sleep(_SLEEP_SECONDS)
            return
        os.sched_yield()
        if time.monotonic() - began > _LONG_SECONDS:
            self._sleeps_until = began + _REST_SECONDS
        await asyncio.sleep(0)


pause: Final = Pause()
"""One for the process, as its event loop has one processor at a time."""
