"""Failpoints: named points at which a crash test kills the server, after each Stripe call and each commit of a top-up.

Code with such points takes a `Failpoint` and awaits it there. In production it is None.
"""

import os
import signal
from collections.abc import Awaitable, Callable

Failpoint = Callable[[str], Awaitable[None]]
"""Awaited with the name of a step once the step is done."""


def kill_at(name: str, *, occurrence: int = 1) -> Failpoint:
    """Return a failpoint that kills the process, as kill -9 does, when `name` is reached for the nth time."""
    left = occurrence

    async def failpoint(reached: str) -> None:
        nonlocal left
        left -= reached == name
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return failpoint
