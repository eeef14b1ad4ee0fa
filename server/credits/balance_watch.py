"""Streams of an organization's balance for pages that are open, fed by one small query for all of them."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field

from server.credits.balances import Balance, Balances


class BalanceWatch:
    """Looks at the watched balances every `poll_seconds`, only while somebody watches.

    Looking sees whatever any replica, or an operator by hand, has committed; it needs no connection per watcher.
    """

    def __init__(self, balances: Balances, *, poll_seconds: float, spending_seconds: float) -> None:
        """spending_seconds is the least time before a message that only says that credits were spent."""
        self._balances = balances
        self._poll_seconds = poll_seconds
        self._spending_seconds = spending_seconds
        self._streams: set[_Stream] = set()
        self._look_now = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def follow(self, organization_id: str) -> AsyncGenerator[Balance, None]:
        """The balance now, and again on each change that a page should show, for ever.

        At once when credits came or the low-balance line was crossed or moved; at most once in spending_seconds when
        credits were spent. A slow reader misses steps, never the latest. last_sequence never goes back.
        Raises DatabaseUnavailable when the database stops answering.
        """
        stream = _Stream(organization_id)
        self._streams.add(stream)
        self._look_now.set()
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            while True:
                yield await stream.next()
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._look_now.set()  # and, with nobody left, stop looking

    async def _poll(self) -> None:
        try:
            while self._streams:
                self._look_now.clear()
                await self._look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._look_now.wait(), self._poll_seconds)
        except Exception as error:  # noqa: BLE001 - every stream gets it
            for stream in self._streams:
                stream.fail(error)

    async def _look(self) -> None:
        # Only those that were here before the question: an answer must not be older than the stream that gets it.
        streams = list(self._streams)
        balances = await self._balances.read([stream.organization_id for stream in streams])
        now = time.monotonic()
        for stream, balance in zip(streams, balances, strict=True):
            stream.offer(balance, now=now, spending_seconds=self._spending_seconds)


@dataclass(slots=True, eq=False)
class _Stream:
    """One watcher: what it was shown last, and whether it has read that."""

    organization_id: str
    _shown: Balance | None = None
    _shown_at: float = 0.0
    _error: Exception | None = None
    _unread: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, balance: Balance, *, now: float, spending_seconds: float) -> None:
        """Show the balance if it is news."""
        if self._is_news(balance, seconds_passed=now - self._shown_at, spending_seconds=spending_seconds):
            self._shown, self._shown_at = balance, now
            self._unread.set()

    def fail(self, error: Exception) -> None:
        """Let the reader end with this error."""
        self._error = error
        self._unread.set()

    async def next(self) -> Balance:
        """What was shown and not yet read. Raises the stream's error."""
        await self._unread.wait()
        self._unread.clear()
        if self._error is not None:
            raise self._error
        assert self._shown is not None  # noqa: S101 - there is something unread
        return self._shown

    def _is_news(self, balance: Balance, *, seconds_passed: float, spending_seconds: float) -> bool:
        shown = self._shown
        if shown is None:
            return True
        if balance == shown or balance.last_sequence < shown.last_sequence:
            return False
        urgent = (
            balance.available_credits > shown.available_credits
            or balance.low_balance != shown.low_balance
            or balance.low_balance_threshold != shown.low_balance_threshold
        )
        return urgent or seconds_passed >= spending_seconds
