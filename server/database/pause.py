"""How work that waits for others gives way to them."""

import asyncio
import os
import time
from typing import Final

_SLEEP_SECONDS: Final = 0.001


class Pause:
    """Lets the event loop turn once, and before that whoever waits for this processor.

    To yield costs next to nothing where few others run. Where a stranger keeps the processor busy he gets a slice of
    time for each yield, so whoever lost one sleeps for a while instead of yielding: a sleeper's turn comes soon.
    """

    def __init__(self, *, long_seconds: float = 0.0025, rest_seconds: float = 0.05) -> None:
        """A yield of more than `long_seconds` is not repeated for `rest_seconds`.

        Those that it is meant for are gRPC's polling thread (see rpc/poller.py) and PostgreSQL, which seldom take more
        than 2 ms. Strangers took 1 to 5 ms.
        """
        self._long_seconds = long_seconds
        self._rest_seconds = rest_seconds
        self._sleeps_until = 0.0

    async def __call__(self) -> bool:
        """Give way once; True after a sleep, in which everybody had a turn."""
        began = time.monotonic()
        if began < self._sleeps_until:
            await asyncio.sleep(_SLEEP_SECONDS)
            return True
        os.sched_yield()
        if time.monotonic() - began > self._long_seconds:
            self._sleeps_until = began + self._rest_seconds
        await asyncio.sleep(0)
        return False


pause: Final = Pause()
"""One for the process, as its event loop has one processor at a time."""
