"""Prometheus metrics over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest


@asynccontextmanager
async def metrics_page(listen: str) -> AsyncIterator[None]:
    """`GET /metrics` at `host:port` while the block runs; nothing for `off`."""
    if listen == "off":
        yield
        return
    application = web.Application()
    application.add_routes([web.get("/metrics", _metrics)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host.strip("[]"), int(port)).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})
