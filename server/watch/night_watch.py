"""Goes its rounds for as long as the server runs: each finishes one kind of work that was left half done."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from server.errors import DomainError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Round:
    """One kind of work, and how often to look for it."""

    name: str
    interval_seconds: float
    go: Callable[[datetime], Awaitable[int]]
    """Told the time; says how many things it did. Work that it leaves is there on the next round."""


class NightWatch:
    """Goes every round on its own, so that a slow one holds up no other. A round that fails is gone again."""

    def __init__(self, rounds: Sequence[Round]) -> None:
        self._tasks = [asyncio.create_task(_keep_going(one), name=f"round {one.name}") for one in rounds]

    async def stop(self) -> None:
        """Stop between two steps: what a round had begun, it or another replica's finishes later."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _keep_going(one: Round) -> None:
    while True:
        await asyncio.sleep(one.interval_seconds)
        try:
            if count := await one.go(datetime.now(UTC)):
                _log.info("round", round=one.name, count=count)
        except DomainError as error:
            _log.warning("round failed", round=one.name, reason=error.reason)
        except Exception:  # noqa: BLE001 - the watch outlives any round, and this line tells what was wrong with it
            _log.exception("round failed", round=one.name)
