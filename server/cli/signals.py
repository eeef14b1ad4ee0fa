"""The metrics and the log events of the code: for docs/operations.md and the tests of docs/monitoring/."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

import server
from server import composition  # noqa: F401 - imports every module that has a metric
from server.api.telemetry import RpcMetrics

_LEVELS: Final = ("error", "warning")
_SAMPLE_SUFFIXES: Final = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


class DocumentedMetric(NamedTuple):
    """A metric as Prometheus knows it."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.type == "counter":
            return (self.name,)
        return tuple(self.name + suffix for suffix in _SAMPLE_SUFFIXES[self.type])


def metrics() -> list[DocumentedMetric]:
    """Every metric of the server, by name."""
    of_a_server = CollectorRegistry()
    RpcMetrics(of_a_server, in_flight=lambda: 0.0)
    collectors = [
        collector
        for registry in (REGISTRY, of_a_server)
        for collector in registry._collector_to_names  # noqa: SLF001 - no public name lists them
        if isinstance(collector, MetricWrapperBase)
    ]
    found = []
    for collector in collectors:
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = tuple(collector._labelnames)  # noqa: SLF001 - nor its labels
        found.append(DocumentedMetric(name, family.type, labels, family.documentation))
    return sorted(found)


class LogEvent(NamedTuple):
    """A log event of level warning or above."""

    name: str
    levels: frozenset[str]
    fields: frozenset[str]


def log_events() -> list[LogEvent]:
    """Every log event of level warning or above, in the order in which the files of server/ log them."""
    found: dict[str, LogEvent] = {}
    for name, level, fields in _log_calls():
        before = found.get(name, LogEvent(name, frozenset(), frozenset()))
        found[name] = LogEvent(name, before.levels | {level}, before.fields | fields)
    return list(found.values())


def _log_calls() -> Iterator[tuple[str, str, frozenset[str]]]:
    """The event, level and fields of each call; stand-ins left out."""
    root = Path(server.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if "sandbox" in path.relative_to(root).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="_log"), attr=level),
                    args=[ast.Constant() | ast.IfExp() as event],
                    keywords=keywords,
                ) if level in _LEVELS:
                    fields = frozenset(each.arg for each in keywords if each.arg)
                    choices = [event.body, event.orelse] if isinstance(event, ast.IfExp) else [event]
                    for name in choices:
                        if isinstance(name, ast.Constant):
                            yield str(name.value), level, fields
