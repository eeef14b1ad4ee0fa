"""The messages that a development server has sent, over HTTP: what recipients would read on their phones."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from server.providers.console import Console


@asynccontextmanager
async def message_page(console: Console, *, port: int) -> AsyncIterator[int]:
    """Serve `GET /messages?to=…` on 127.0.0.1 while the block runs: the messages as JSON, newest first.

    Yields the port; port 0 takes any free one.
    """

    async def messages(request: web.Request) -> web.Response:
        wanted = request.query.get("to")
        return web.json_response(
            [
                {"channel": message.channel, "to": message.destination, "code": message.code}
                for message in reversed(console.messages)
                if wanted in {None, message.destination}
            ]
        )

    application = web.Application()
    application.add_routes([web.get("/messages", messages)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
