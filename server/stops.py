"""Named points at which a crash test may stop the server: after each Stripe call and after each commit of a top-up.

Whoever does such work takes a `Reached` and awaits it there. In production it is `go_on`.
"""

import os
import signal
from collections.abc import Awaitable, Callable

Reached = Callable[[str], Awaitable[None]]
"""Told the name of a point once what it names is done."""


async def go_on(_point: str) -> None:
    """Nothing stops."""


def kill_at(point: str, *, occurrence: int = 1) -> Reached:
    """The process kills itself, as kill -9 does, when the point is reached for the nth time."""
    left = occurrence

    async def reached(at: str) -> None:
        nonlocal left
        left -= at == point
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached
