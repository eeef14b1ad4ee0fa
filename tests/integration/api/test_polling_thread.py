"""gRPC's polling thread is pinned to the event loop's processor while that is asked for, and only then."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from server.api.server import GrpcServer, pinned_polling_thread, polling_threads
from server.cli import serve
from server.environment import load_settings
from tests.integration.api.stub_server import StubServer
from tests.waiting import until

PINNED_AFTER_SECONDS = 0.3
"""Several times as long as pinning takes."""


def is_on(thread: int, processor: int) -> Callable[[], bool]:
    return lambda: os.sched_getaffinity(thread) == {processor}


async def test_the_polling_thread_follows_the_event_loop(channel: grpc.aio.Channel) -> None:
    await channel.channel_ready()
    [polling_thread], processors = polling_threads(), os.sched_getaffinity(0)
    loop = threading.get_native_id()

    async with pinned_polling_thread():
        try:
            for processor in sorted(processors)[:2]:
                os.sched_setaffinity(loop, {processor})
                await until(is_on(polling_thread, processor))
        finally:
            os.sched_setaffinity(loop, processors)

    assert os.sched_getaffinity(polling_thread) == processors


async def test_the_polling_thread_does_not_interrupt_the_event_loop(channel: grpc.aio.Channel) -> None:
    await channel.channel_ready()
    [polling_thread] = polling_threads()
    before = os.sched_getscheduler(polling_thread)

    async with pinned_polling_thread():
        await until(
            lambda: os.sched_getscheduler(polling_thread) == os.SCHED_BATCH or len(os.sched_getaffinity(0)) == 1
        )

    assert os.sched_getscheduler(polling_thread) == before


@pytest.mark.parametrize(("setting", "is_pinned"), [("", True), ("true", True), ("false", False)])
async def test_serve_pins_the_polling_thread_unless_the_setting_is_false(
    stub_server: StubServer, monkeypatch: pytest.MonkeyPatch, setting: str, *, is_pinned: bool
) -> None:
    processors = os.sched_getaffinity(0)
    if len(processors) == 1:
        pytest.skip("with a single processor nothing is ever pinned")
    [polling_thread] = polling_threads()
    before = os.sched_getscheduler(polling_thread)
    seen: list[tuple[int, int]] = []

    @asynccontextmanager
    async def running(*_arguments: Any, **_options: Any) -> AsyncIterator[GrpcServer]:
        yield stub_server.grpc_server

    async def look_and_stop() -> None:
        await asyncio.sleep(PINNED_AFTER_SECONDS)
        seen.append((len(os.sched_getaffinity(polling_thread)), os.sched_getscheduler(polling_thread)))

    monkeypatch.setattr(serve, "running", running)
    monkeypatch.setattr(serve, "wait_for_stop_signal", look_and_stop)
    monkeypatch.setattr(serve, "tune_garbage_collector", lambda: None)
    environment = {"PULSA_PIN_POLLING_THREAD": setting, "PULSA_METRICS_LISTEN": "off"}
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    try:
        await serve._serve(load_settings(environment), "", supervisor=None)
    finally:
        loop.set_exception_handler(handler)

    assert seen == [(1, os.SCHED_BATCH) if is_pinned else (len(processors), before)]
