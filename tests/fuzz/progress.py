"""How much to fuzz: little in the test suite, much in `make fuzz`, and how far it has come."""

import os
import sys
import time
from random import Random

MESSAGES = int(os.environ.get("FUZZ_MESSAGES", "1500"))
"""To all rpcs together."""
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "800"))
"""Raw HTTP requests to the sidecar."""
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1000"))
"""Inputs of each coverage-guided fuzzer."""
_SEED = int(os.environ.get("FUZZ_SEED", "1"))
_SECONDS = float(os.environ.get("FUZZ_SECONDS", "1200"))
_SHOW_SECONDS = 1.0


def seeded_random() -> Random:
    """A generator seeded with FUZZ_SEED, the same for each test. Ids and times still differ between runs."""
    return Random(_SEED)  # noqa: S311 - inputs are no secrets, and a run must be repeatable


class Progress:
    """Counts inputs, prints the count, and ends at a total or a time limit."""

    def __init__(self, what: str, total: int) -> None:
        """Ends after `total` inputs, or after FUZZ_SECONDS."""
        self._what, self._total, self._began = what, total, time.monotonic()
        self._shown = 0.0
        self.done = 0

    @property
    def is_unfinished(self) -> bool:
        """Whether neither the total nor the time limit is reached."""
        return self.done < self._total and time.monotonic() < self._began + _SECONDS

    def add(self, count: int) -> None:
        """Count `count` more inputs."""
        self.done += count
        now = time.monotonic()
        if now - self._shown >= _SHOW_SECONDS or self.done >= self._total:
            self._shown = now
            _show(f"\r  {self.done:,} of {self._total:,} {self._what}, {now - self._began:.0f} s ")

    def report(self, found: str) -> None:
        """Print a finding on a line of its own."""
        _show(f"\n  {found}\n")


def _show(text: str) -> None:
    """Print to the terminal, even while pytest captures output (--capture=sys)."""
    if sys.__stderr__ is not None:
        sys.__stderr__.write(text)
        sys.__stderr__.flush()
