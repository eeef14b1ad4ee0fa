"""A collector of traces: it takes spans by OTLP over HTTP, as OpenTelemetry's own does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """What was exported."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    resource: dict[str, str | int] = field(default_factory=dict)
    """Who exported last, and with which headers."""
    headers: dict[str, str] = field(default_factory=dict)

    async def take(self, request: web.Request) -> web.Response:
        """Store an export."""
        assert request.content_type == "application/x-protobuf"
        self.headers = dict(request.headers)
        self.bodies.append(await request.read())
        for resource in ExportTraceServiceRequest.FromString(self.bodies[-1]).resource_spans:
            self.resource = attributes_of(resource.resource)
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response()

    def of(self, trace_id: str) -> list[Span]:
        """The spans of a trace."""
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def linked_to(self, trace_id: str) -> list[Span]:
        """The spans with a link to a trace."""
        return [span for span in self.spans if any(link.trace_id.hex() == trace_id for link in span.links)]


def attributes_of(span: Span | Resource) -> dict[str, str | int]:
    """The attributes by their names."""
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a collector on a free port."""
    collector = Collector()
    application = web.Application()
    application.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
        yield collector
    finally:
        await runner.cleanup()
