"""Tells open pages when the balance of their organization has changed."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pulsa.client import PulsaClient
from pulsa.errors import PulsaError

Key = tuple[PulsaClient, str]
"""Whose token watches, and the organization."""


class Changes:
    """One WatchBalance, in one thread, for all pages that show the same balance to the same person.

    The client is blocking, so a thread reads the stream. It ends at the first message after its last page was closed:
    after half a minute, as WatchBalance then repeats itself.
    """

    def __init__(self) -> None:
        self._pages: dict[Key, set[asyncio.Event]] = {}
        self._watched: set[Key] = set()

    @contextmanager
    def watched(self, pulsa: PulsaClient, organization_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set on each change of the balance, and when the server is reached again."""
        key, changed = (pulsa, organization_id), asyncio.Event()
        self._pages.setdefault(key, set()).add(changed)
        self._start(key)
        try:
            yield changed
        finally:
            self._pages[key].discard(changed)

    def _start(self, key: Key) -> None:
        if key not in self._watched and self._pages[key]:
            self._watched.add(key)
            threading.Thread(target=self._watch, args=(key, asyncio.get_running_loop()), daemon=True).start()

    def _watch(self, key: Key, loop: asyncio.AbstractEventLoop) -> None:
        pulsa, organization_id = key
        with suppress(RuntimeError):  # the loop has ended
            # Refused, or the client is closed: the pages still ask now and then.
            with suppress(PulsaError, ValueError):
                for _ in pulsa.watch_balance(organization_id):
                    if not self._pages[key]:
                        loop.call_soon_threadsafe(self._end, key)
                        return
                    loop.call_soon_threadsafe(self._tell, key)
            loop.call_soon_threadsafe(self._watched.discard, key)

    def _tell(self, key: Key) -> None:
        for changed in self._pages[key]:
            changed.set()

    def _end(self, key: Key) -> None:
        self._watched.discard(key)
        self._start(key)  # for a page that has been opened meanwhile
