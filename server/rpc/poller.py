"""Keeps gRPC's polling thread on the event loop's processor.

Each of the four or so events of a call goes through a thread of grpcio, which waits for it and tells the loop. Left to
the scheduler that thread sleeps on another processor, and to wake a processor takes longer than all that the thread
does: on a virtual machine 29 us of the loop's time for a send. On the loop's own, as a batch thread (SCHED_BATCH), it
does not interrupt the loop, runs when that waits or pauses, and brings all that has come by then.
"""

import asyncio
import ctypes
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

_log = structlog.get_logger(__name__)

_NAME: Final = "_poll_wrapper"
"""What grpcio calls it; all asyncio servers and channels of a process have one together."""
_LOOK_SECONDS: Final = 0.05


@asynccontextmanager
async def poller_beside_loop() -> AsyncIterator[None]:
    """Let the polling thread follow the calling thread from processor to processor, while the block runs.

    Only Linux can do this; elsewhere, or with a single processor, everything stays as it is.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(processors) <= 1:
        yield
        return
    following = asyncio.create_task(_follow(ctypes.CDLL(None).sched_getcpu))
    try:
        yield
    finally:
        following.cancel()
        with suppress(OSError):  # it ends with the last server
            _place(polling_threads(), processors, os.SCHED_OTHER)


def polling_threads() -> list[int]:
    """As the system numbers them."""
    return [thread.native_id for thread in threading.enumerate() if _NAME in thread.name and thread.native_id]


async def _follow(current_processor: Callable[[], int]) -> None:
    placed = None
    while True:
        wanted = polling_threads(), current_processor()
        try:
            if wanted != placed:
                threads, processor = placed = wanted
                _place(threads, {processor}, os.SCHED_BATCH)
        except ProcessLookupError:  # it has just ended; another server will have another
            placed = None
        except OSError as error:  # a sandbox may forbid it
            _log.info("the polling thread stays where it is", why=error.strerror)
            return
        await asyncio.sleep(_LOOK_SECONDS)


def _place(threads: Iterable[int], processors: Iterable[int], policy: int) -> None:
    for thread in threads:
        os.sched_setaffinity(thread, processors)
        os.sched_setscheduler(thread, policy, os.sched_param(0))
