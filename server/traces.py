"""Traces: spans of the sampled calls, exported by OTLP (OpenTelemetry) over HTTP.

The messages of OTLP are an extra: `pip install pulsa-server[traces]`. OpenTelemetry's SDK is not used: its spans took
about 200 µs per sampled send, these take 40, and its thread competed with the event loop.

The current span is a context variable, so that what a sampled call awaits becomes a part of it. Other calls have none,
and cost a look at it. Batches and deliveries have tasks of their own, which begin without one: they get it explicitly.

An attribute is a name, a number or a stable identifier: never a destination, a code, or the text of an error.
"""

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final

import aiohttp
import structlog

Attributes = Mapping[str, str | int]
Metadata = Sequence[tuple[str, str | bytes]]

POSTGRESQL: Final[Attributes] = {"db.system.name": "postgresql"}
"""The attributes of the spans of database work."""
_TRACEPARENT: Final = re.compile(
    r"00-(?!0{32})(?P<trace_id>[0-9a-f]{32})-(?!0{16})(?P<span_id>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
)
"""https://www.w3.org/TR/trace-context/#traceparent-header."""
_FAULTS: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""The codes that are errors of a server: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/."""
_MOST_WAITING: Final = 5000
"""Ended spans that wait to be exported; further ones are dropped."""
_MOST_AT_ONCE: Final = 200
"""Spans of one export: writing them takes the event loop about 2 ms."""
_EXPORT_SECONDS: Final = 1.0
_LOG_SECONDS: Final = 60.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5)

_log = structlog.get_logger(__name__)


class Span:
    """A step of a sampled call. While its block runs, it is the current span."""

    __slots__ = (
        "_token",
        "_traces",
        "attributes",
        "began",
        "ended",
        "links",
        "name",
        "parent_id",
        "span_id",
        "trace_id",
    )

    def __init__(
        self, traces: "Traces", name: str, attributes: Attributes, *, trace_id: bytes, parent_id: bytes
    ) -> None:
        """Begin it; `parent_id` is empty for the first of its trace."""
        self._traces = traces
        self._token: Token[Span | None] | None = None
        self.name = name
        self.attributes = dict(attributes)
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.span_id = _random_bytes(8)
        self.links: list[tuple[bytes, bytes]] = []
        """Trace and span of each."""
        self.began = time.time_ns()
        self.ended = 0
        """0 until then; both in Unix nanoseconds."""

    def child(self, name: str, attributes: Attributes) -> "Span":
        """Begin a part of this step."""
        return Span(self._traces, name, attributes, trace_id=self.trace_id, parent_id=self.span_id)

    def shared(self, name: str, attributes: Attributes, spans: "Sequence[Span]") -> "Span":
        """Begin a part of this step that is also a part of other ones; it has links to all of them, and they to it."""
        shared = self.child(name, attributes)
        for span in spans:
            shared.links.append((span.trace_id, span.span_id))
            if not span.ended:
                span.links.append((shared.trace_id, shared.span_id))
        return shared

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        self.attributes.update(attributes)

    def enter(self) -> None:
        """Become the current span, for the rest of the task."""
        self._token = _current.set(self)

    def end_call(self, code: str) -> None:
        """End the span of a call with its gRPC code."""
        self.attributes["rpc.response.status_code"] = code
        self._end(code if code in _FAULTS else "")

    def __enter__(self) -> "Span":
        self.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        assert self._token is not None  # noqa: S101 - __enter__ has set it
        _current.reset(self._token)
        self._end("" if kind is None else kind.__name__)

    def _end(self, error_type: str) -> None:
        if error_type:
            self.attributes["error.type"] = error_type
        self.ended = time.time_ns()
        self._traces.add(self)


_current: ContextVar[Span | None] = ContextVar("span", default=None)
_NO_SPAN: Final[AbstractContextManager[None]] = nullcontext()

current_span: Final = _current.get
"""Returns the current span; None in what is not sampled."""


def child_span(name: str, attributes: Attributes) -> "AbstractContextManager[Span | None]":
    """Begin a part of the current span, if there is one."""
    parent = _current.get()
    return _NO_SPAN if parent is None else parent.child(name, attributes)


def shared_span(name: str, spans: Sequence[Span], attributes: Attributes) -> "AbstractContextManager[Span | None]":
    """Begin a part of the first of these spans that all of them share, if there are any."""
    return spans[0].shared(name, attributes, spans) if spans else _NO_SPAN


class Traces:
    """Samples calls, and exports their spans. What cannot be exported is dropped: no call waits for it."""

    def __init__(self, *, endpoint: str, ratio: float, environment: str, headers: Mapping[str, str]) -> None:
        """`endpoint` takes OTLP over HTTP; `headers` are sent to it. Raises ImportError without the extra."""
        # Here, as the extra may be missing.
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: PLC0415
        from opentelemetry.proto.common.v1 import common_pb2  # noqa: PLC0415
        from opentelemetry.proto.trace.v1 import trace_pb2  # noqa: PLC0415

        self._common, self._trace = common_pb2, trace_pb2
        self._request = trace_service_pb2.ExportTraceServiceRequest
        self._resource = self._key_values({"service.name": "pulsa", "deployment.environment.name": environment})
        self._endpoint = endpoint
        self._headers = {"Content-Type": "application/x-protobuf", **headers}
        self._ratio = ratio
        self._ended: deque[Span] = deque()
        self._dropped = 0
        """Since it was last logged, at `_log_time`."""
        self._log_time = -_LOG_SECONDS

    def begin_call(self, rpc: str, metadata: Metadata) -> Span | None:
        """Begin the span of a call; None when it is not sampled.

        A caller's traceparent decides; without one, or with a malformed one, chance.
        """
        for key, value in metadata:
            if key == "traceparent" and isinstance(value, str) and (match := _TRACEPARENT.fullmatch(value)):
                if not int(match["flags"], 16) & 1:
                    return None
                trace_id, parent_id = bytes.fromhex(match["trace_id"]), bytes.fromhex(match["span_id"])
                break
        else:
            if random.random() >= self._ratio:  # noqa: S311 - no secret
                return None
            trace_id, parent_id = _random_bytes(16), b""
        attributes = {"rpc.system.name": "grpc", "rpc.method": rpc}
        return Span(self, rpc, attributes, trace_id=trace_id, parent_id=parent_id)

    def add(self, span: Span) -> None:
        """Let an ended span wait for the next export."""
        if len(self._ended) < _MOST_WAITING:
            self._ended.append(span)
        else:
            self._dropped += 1

    async def export(self) -> None:
        """Export the spans that have ended, once a second, until cancelled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                await asyncio.sleep(_EXPORT_SECONDS)
                await self._export(session)

    async def close(self) -> None:
        """Export what is left, within 5 seconds."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            await self._export(session)

    async def _export(self, session: aiohttp.ClientSession) -> None:
        """Export until no more spans wait, or the collector fails: then all of them are dropped."""
        why = ""
        while self._ended and not why:
            spans = [self._ended.popleft() for _ in range(min(_MOST_AT_ONCE, len(self._ended)))]
            try:
                async with session.post(self._endpoint, data=self._write(spans), headers=self._headers) as answer:
                    why = "" if answer.ok else f"http_{answer.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                why = type(error).__name__
            if why:
                self._dropped += len(spans) + len(self._ended)
                self._ended.clear()
        if self._dropped and time.monotonic() - self._log_time >= _LOG_SECONDS:
            _log.warning("spans were dropped", count=self._dropped, why=why or "too_many")
            self._dropped, self._log_time = 0, time.monotonic()

    def _write(self, spans: Sequence[Span]) -> bytes:
        """An export of these spans."""
        request = self._request()
        resource_spans = request.resource_spans.add()
        resource_spans.resource.attributes.extend(self._resource)
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.name = "pulsa"
        scope_spans.spans.extend(map(self._message, spans))
        return request.SerializeToString()

    def _message(self, span: Span) -> Any:
        is_call = "rpc.method" in span.attributes
        message = self._trace.Span(
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_span_id=span.parent_id,
            name=span.name,
            kind=self._trace.Span.SPAN_KIND_SERVER if is_call else self._trace.Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=span.began,
            end_time_unix_nano=span.ended,
            attributes=self._key_values(span.attributes),
            links=[self._trace.Span.Link(trace_id=trace_id, span_id=span_id) for trace_id, span_id in span.links],
        )
        if "error.type" in span.attributes:
            message.status.code = self._trace.Status.STATUS_CODE_ERROR
        return message

    def _key_values(self, attributes: Attributes) -> list[Any]:
        any_value = self._common.AnyValue
        return [
            self._common.KeyValue(
                key=key, value=any_value(string_value=value) if isinstance(value, str) else any_value(int_value=value)
            )
            for key, value in attributes.items()
        ]


def _random_bytes(count: int) -> bytes:
    """Random bytes, of which not all are zero."""
    return (random.getrandbits(8 * count) or 1).to_bytes(count, "big")
