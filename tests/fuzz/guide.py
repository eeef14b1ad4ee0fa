"""A coverage-guided fuzzer: an input that takes the code somewhere new is kept, and spoiled further.

As small as it can be: it runs wherever Python does, in the test suite too.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from types import CodeType, FrameType, ModuleType
from typing import Any

from tests.fuzz.mutations import Mutator

_MOST_BYTES = 4096
Step = tuple[CodeType, int, int]
"""From one line of a function to another."""


class Guide:
    """Feeds one function. Whatever it raises is a finding, told with the input that did it."""

    def __init__(self, target: Callable[[bytes], object], modules: Iterable[ModuleType], random: Random) -> None:
        """Where inputs lead is watched in these modules."""
        self._target, self._random = target, random
        self._mutator = Mutator(random, most_bytes=_MOST_BYTES)
        self._files = {str(Path(module.__file__ or "")) for module in modules}
        self.steps: set[Step] = set()
        """Everywhere that an input has led so far."""
        self.kept: list[bytes] = []
        """The seeds, and then the inputs that led somewhere new."""

    def begin(self, seeds: Sequence[bytes]) -> None:
        """Try the inputs that all others will come from."""
        for seed in seeds:
            self._leads_on(seed)
            self.kept.append(seed)

    def explore(self, rounds: int) -> None:
        """Try so many spoiled inputs."""
        for _ in range(rounds):
            # The newest are the least explored.
            parent = self._random.choice(self.kept[-8:] if self._random.random() < 0.5 else self.kept)
            data = self._mutator.mutate(parent, self._random.choice(self.kept))
            if self._leads_on(data):
                self.kept.append(data)

    def _leads_on(self, data: bytes) -> bool:
        """Whether the input takes the code where none did before."""
        steps: set[Step] = set()
        before = sys.gettrace()
        sys.settrace(self._tracer(steps))
        try:
            self._target(data)
        except Exception as error:
            raise AssertionError(f"found: {type(error).__name__} for {data!r}") from error
        finally:
            sys.settrace(before)
        known = len(self.steps)
        self.steps |= steps
        return len(self.steps) > known

    def _tracer(self, steps: set[Step]) -> Callable[[FrameType, str, Any], Any]:
        def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
            code = frame.f_code
            # What goes through a text letter by letter would take all the time.
            if code.co_filename not in self._files or code.co_name == "<genexpr>":
                return None
            last = 0

            def follow(frame: FrameType, event: str, _argument: Any) -> Any:
                nonlocal last
                if event == "line":
                    steps.add((code, last, frame.f_lineno))
                    last = frame.f_lineno
                return follow

            return follow

        return enter
