"""Faults on request: which call or event fails, how, and how often."""

import asyncio
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from typing import Any

from server.sandbox.stripe.invoice_actions import ACTIONS

CALL_FAULTS: dict[str, set[str]] = {
    "rate_limit": {"should_retry"},
    "lock_timeout": {"should_retry"},
    "server_error": {"should_retry", "stored", "executes"},
    "bad_gateway": {"executes"},
    "refuse": {"status", "type", "code", "message", "param", "stored", "should_retry"},
    "truncated": set(),
    "cut_off": set(),
    "drop_before": set(),
    "drop_after": set(),
    "hold_before": {"seconds"},
    "hold_after": {"seconds"},
    "twice": set(),
    "change_parameters": {"set", "multiply"},
    "change_answer": {"set"},
    "act_before": {"action", "options"},
    "act_after": {"action", "options"},
}
"""The faults of an API call, with the options of each."""

EVENT_FAULTS: dict[str, set[str]] = {
    "duplicate": {"copies"},
    "second_id": set(),
    "hold": set(),
    "lose": set(),
    "reorder": set(),
    "change_event": {"set"},
    "missign": {"age_seconds", "secret"},
}
"""The faults of an event's delivery, with the options of each."""

_DEFAULT_HOLD_SECONDS = 60.0


@dataclass(slots=True)
class Fault:
    """One fault: the first `skip` matches pass, the next `times` (0: all) fail."""

    id: str
    match: dict[str, str]
    kind: str
    options: dict[str, Any]
    times: int = 1
    skip: int = 0
    seen: int = 0
    used: int = 0
    met: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self) -> None:
        """Wait until released, but no longer than the option `seconds`."""
        self.met.set()
        try:
            async with asyncio.timeout(float(self.options.get("seconds", _DEFAULT_HOLD_SECONDS))):
                await self.released.wait()
        except TimeoutError:
            return

    def as_json(self) -> dict[str, Any]:
        """The fault in the control API."""
        counts = {"times": self.times, "skip": self.skip, "seen": self.seen, "used": self.used}
        return {"id": self.id, "match": self.match, "fault": self.kind, **self.options, **counts}


class Faults:
    """The active faults, oldest first. At most one applies to a call or event."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._numbers = count(1)

    def add(self, body: dict[str, Any]) -> Fault:
        """Add a fault from the control API's JSON. Raises ValueError when it is invalid."""
        options = dict(body)
        match, kind = options.pop("match", None), options.pop("fault", None)
        times, skip = int(options.pop("times", 1)), int(options.pop("skip", 0))
        if not isinstance(match, dict) or not ({"event"} & set(match) or {"method", "path"} & set(match)):
            raise ValueError('match must be an object with "event", or with "method" or "path"')
        if set(match) - {"event", "method", "path", "contains"}:
            raise ValueError("match knows event, method, path and contains")
        known = EVENT_FAULTS if "event" in match else CALL_FAULTS
        if kind not in known:
            raise ValueError(f"fault must be one of {', '.join(known)}")
        if set(options) - known[kind]:
            raise ValueError(f"{kind} takes {', '.join(sorted(known[kind])) or 'no options'}")
        if kind.startswith("act_") and options.get("action") not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}")
        fault = Fault(f"fault_{next(self._numbers)}", match, kind, options, times, skip)
        self._faults.append(fault)
        return fault

    def match(self, *, content: str, **facts: str) -> Fault | None:
        """The fault for a call (`method`, `path`) or an event (`event`) with this content, counted as used."""
        for fault in self._faults:
            if not _matches(fault.match, content, facts):
                continue
            if fault.times and fault.used >= fault.times:
                continue
            fault.seen += 1
            if fault.seen > fault.skip:
                fault.used += 1
                if not fault.kind.startswith("hold_"):
                    fault.met.set()
                return fault
        return None

    def find(self, identifier: str) -> Fault | None:
        """The fault with this id."""
        return next((fault for fault in self._faults if fault.id == identifier), None)

    def all(self) -> list[Fault]:
        """Every fault, used up or not."""
        return list(self._faults)

    def remove(self, fault: Fault) -> None:
        """Remove the fault and release what it holds."""
        fault.released.set()
        self._faults.remove(fault)

    def clear(self) -> None:
        """Remove every fault."""
        for fault in self.all():
            self.remove(fault)


def _matches(match: dict[str, str], content: str, facts: dict[str, str]) -> bool:
    for name, pattern in match.items():
        if name == "contains":
            if pattern not in content:
                return False
        elif name not in facts or not fnmatchcase(facts[name], pattern):
            return False
    return True
