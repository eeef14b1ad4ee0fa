"""gRPC's polling thread: where the event loop is, and nowhere near when nobody asked for that."""

import os
import threading
from collections.abc import Callable

import grpc

from server.rpc.poller import poller_beside_loop, polling_threads
from tests.integration.rpc.house import until


def is_on(thread: int, processor: int) -> Callable[[], bool]:
    return lambda: os.sched_getaffinity(thread) == {processor}


async def test_the_polling_thread_follows_the_event_loop(channel: grpc.aio.Channel) -> None:
    await channel.channel_ready()
    [poller], processors = polling_threads(), os.sched_getaffinity(0)
    loop = threading.get_native_id()

    async with poller_beside_loop():
        try:
            for processor in sorted(processors)[:2]:
                os.sched_setaffinity(loop, {processor})
                await until(is_on(poller, processor))
        finally:
            os.sched_setaffinity(loop, processors)

    assert os.sched_getaffinity(poller) == processors


async def test_the_polling_thread_does_not_interrupt_the_event_loop(channel: grpc.aio.Channel) -> None:
    await channel.channel_ready()
    [poller] = polling_threads()
    before = os.sched_getscheduler(poller)

    async with poller_beside_loop():
        await until(lambda: os.sched_getscheduler(poller) == os.SCHED_BATCH or len(os.sched_getaffinity(0)) == 1)

    assert os.sched_getscheduler(poller) == before
