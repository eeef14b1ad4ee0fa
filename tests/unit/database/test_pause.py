"""The pause: it yields, unless that was long."""

import asyncio
import os
import time
from collections.abc import Callable

import pytest

from server.database.pause import Pause


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[float]]:
    """Makes every yield last so many seconds, and counts them."""

    def make(seconds: float) -> list[float]:
        counted: list[float] = []

        def sched_yield() -> None:
            counted.append(seconds)
            time.sleep(seconds)

        monkeypatch.setattr(os, "sched_yield", sched_yield)
        return counted

    return make


async def test_it_lets_the_loop_turn(yields: Callable[[float], list[float]]) -> None:
    counted, turned, pause = yields(0.0), asyncio.Event(), Pause()
    asyncio.get_running_loop().call_soon(turned.set)

    await pause()

    assert turned.is_set()
    assert len(counted) == 1


async def test_it_yields_every_time_where_yields_are_short(yields: Callable[[float], list[float]]) -> None:
    counted, pause = yields(0.0), Pause()

    for _ in range(3):
        await pause()

    assert len(counted) == 3


async def test_it_sleeps_instead_for_a_while_where_a_yield_was_long(yields: Callable[[float], list[float]]) -> None:
    counted, pause = yields(0.01), Pause()

    assert [await pause() for _ in range(3)] == [False, True, True]
    assert len(counted) == 1

    await asyncio.sleep(0.1)
    assert not await pause()
    assert len(counted) == 2
