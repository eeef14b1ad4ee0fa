"""How much is fuzzed: little in the test suite, much in `make fuzz`, which also tells how far it has come."""

import os
import sys
import time
from random import Random

MESSAGES = int(os.environ.get("FUZZ_MESSAGES", "1500"))
"""To every rpc together."""
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "800"))
"""Raw ones, to the sidecar."""
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1000"))
"""Of each coverage-guided fuzzer."""
_SEED = int(os.environ.get("FUZZ_SEED", "1"))
_SECONDS = float(os.environ.get("FUZZ_SECONDS", "1200"))
_SHOW_SECONDS = 1.0


def chance() -> Random:
    """The same for each test of a run, and for each run with the same FUZZ_SEED; ids and times still differ."""
    return Random(_SEED)  # noqa: S311 - what is fuzzed is no secret, and somebody may want it again


class Progress:
    """Counts, shows the count, and says when enough is enough."""

    def __init__(self, what: str, total: int) -> None:
        """Enough is the total, or what fits into FUZZ_SECONDS."""
        self._what, self._total, self._began = what, total, time.monotonic()
        self._shown = 0.0
        self.done = 0

    @property
    def goes_on(self) -> bool:
        """Whether there is more to do."""
        return self.done < self._total and time.monotonic() < self._began + _SECONDS

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        now = time.monotonic()
        if now - self._shown >= _SHOW_SECONDS or self.done >= self._total:
            self._shown = now
            _show(f"\r  {self.done:,} of {self._total:,} {self._what}, {now - self._began:.0f} s ")

    def tell(self, found: str) -> None:
        """A line of its own, about what was found."""
        _show(f"\n  {found}\n")


def _show(text: str) -> None:
    """On the terminal, also while pytest keeps what tests and libraries print (--capture=sys)."""
    if sys.__stderr__ is not None:
        sys.__stderr__.write(text)
        sys.__stderr__.flush()
