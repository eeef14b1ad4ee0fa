"""A coverage-guided fuzzer: an input that reaches new code is kept, and mutated further.

It is small and needs only Python, so that it runs in the test suite too.
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
"""From one line of a function to the next one executed: the code object and both line numbers."""


class CoverageFuzzer:
    """Calls one function with generated inputs. An exception is a finding, reported with its input."""

    def __init__(self, target: Callable[[bytes], object], modules: Iterable[ModuleType], random: Random) -> None:
        """Coverage is measured in these modules."""
        self._target, self._random = target, random
        self._mutator = Mutator(random, most_bytes=_MOST_BYTES)
        self._files = {str(Path(module.__file__ or "")) for module in modules}
        self.steps: set[Step] = set()
        """Every step that an input has reached so far."""
        self.kept: list[bytes] = []
        """The seeds, and the inputs that reached new steps."""

    def begin(self, seeds: Sequence[bytes]) -> None:
        """Try the inputs from which all others are mutated."""
        for seed in seeds:
            self._reaches_new_code(seed)
            self.kept.append(seed)

    def explore(self, rounds: int) -> None:
        """Try `rounds` mutated inputs."""
        for _ in range(rounds):
            # The newest are the least explored.
            parent = self._random.choice(self.kept[-8:] if self._random.random() < 0.5 else self.kept)
            data = self._mutator.mutate(parent, self._random.choice(self.kept))
            if self._reaches_new_code(data):
                self.kept.append(data)

    def _reaches_new_code(self, data: bytes) -> bool:
        """Whether the input reaches a step that no earlier one reached."""
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
            # Generator expressions iterate over single characters, which would take most of the time.
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
