"""LoopTurn: it yields the processor, and sleeps instead for a while after a long yield."""

import asyncio
import os
import time

import pytest

from server.postgres.batcher import LoopTurn

NEVER_SECONDS = 3600.0


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which the processor was yielded, each for a millisecond."""
    times: list[float] = []

    def sched_yield() -> None:
        times.append(time.monotonic())
        time.sleep(0.001)

    monkeypatch.setattr(os, "sched_yield", sched_yield)
    return times


async def test_a_turn_yields_the_processor_and_lets_the_loop_turn(yields: list[float]) -> None:
    turned = asyncio.Event()
    asyncio.get_running_loop().call_soon(turned.set)

    await LoopTurn()()

    assert turned.is_set()
    assert len(yields) == 1


async def test_short_yields_are_repeated_each_turn(yields: list[float]) -> None:
    turn = LoopTurn(long_seconds=NEVER_SECONDS)

    assert [await turn() for _ in range(3)] == [False, False, False]
    assert len(yields) == 3


async def test_after_a_long_yield_it_sleeps_instead(yields: list[float]) -> None:
    turn = LoopTurn(long_seconds=0.0, rest_seconds=NEVER_SECONDS)

    assert [await turn() for _ in range(3)] == [False, True, True]
    assert len(yields) == 1


async def test_it_yields_again_after_the_rest_time(yields: list[float]) -> None:
    turn = LoopTurn(long_seconds=0.0, rest_seconds=0.0)

    assert [await turn() for _ in range(2)] == [False, False]
    assert len(yields) == 2
