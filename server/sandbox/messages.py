"""The messages of a development machine over HTTP: what a person would read on the phone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from server.channels.console import Console


@asynccontextmanager
async def message_page(console: Console, *, port: int) -> AsyncIterator[int]:
    """`GET /messages?to=…` on this machine while the block runs: the newest messages first, as JSON.

    Gives the port, for a caller that asked for any (0).
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
