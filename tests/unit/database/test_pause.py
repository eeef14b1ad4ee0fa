"""The pause: it yields, unless that was long."""

import asyncio
import os
import time

import pytest

from server.database.pause import Pause

NEVER_SECONDS = 3600.0


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the processor was yielded; each time for a moment."""
    times: list[float] = []

    def sched_yield() -> None:
        times.append(time.monotonic())
        time.sleep(0.001)

    monkeypatch.setattr(os, "sched_yield", sched_yield)
    return times


async def test_it_yields_and_lets_the_loop_turn(yields: list[float]) -> None:
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)

    await Pause()()

    assert turned.is_set()
    assert len(yields) == 1


async def test_it_yields_every_time_where_yields_are_short(yields: list[float]) -> None:
    pause = Pause(long_seconds=NEVER_SECONDS)

    assert [await pause() for _ in range(3)] == [False, False, False]
    assert len(yields) == 3


async def test_it_sleeps_instead_where_a_yield_was_long(yields: list[float]) -> None:
    pause = Pause(long_seconds=0.0, rest_seconds=NEVER_SECONDS)

    assert [await pause() for _ in range(3)] == [False, True, True]
    assert len(yields) == 1


async def test_it_yields_again_after_a_while(yields: list[float]) -> None:
    pause = Pause(long_seconds=0.0, rest_seconds=0.0)

    assert [await pause() for _ in range(2)] == [False, False]
    assert len(yields) == 2
