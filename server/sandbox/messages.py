"""The messages that a development server has sent, as its recipients would read them, and as JSON."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from html import escape

from aiohttp import web

from server.providers.console import Console
from server.providers.provider import Channel, Message
from server.providers.templates import Rendered, Templates, load_templates

_SHOWN = 50
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Messages</title>
<link rel="icon" href="data:,">
<style>
  :root {{ color-scheme: light dark; }}
  html {{ background: Canvas; color: CanvasText; }}
  body {{ max-width: 60rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }}
  .columns {{ display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }}
  article {{ margin: 0 0 1rem; padding: .75rem 1rem; border: 1px solid #8888; border-radius: 1rem; }}
  article p {{ margin: 0; white-space: pre-line; overflow-wrap: anywhere; }}
  article header {{ font-size: .85rem; overflow-wrap: anywhere; }}
  .phone article {{ max-width: 20rem; border-bottom-left-radius: .2rem; }}
  iframe {{ width: 100%; height: 16rem; border: 0; }}
</style>
</head>
<body>
<main>
<h1>Messages</h1>
<p>What was sent since the server began, newest first; also <a href="/messages">as JSON</a>.</p>
<div class="columns">
<section class="phone" aria-labelledby="phone"><h2 id="phone">On a phone</h2>{phone}</section>
<section aria-labelledby="mailbox"><h2 id="mailbox">In a mailbox</h2>{mailbox}</section>
</div>
</main>
</body>
</html>
"""


@asynccontextmanager
async def message_page(console: Console, *, port: int, templates: Templates | None = None) -> AsyncIterator[int]:
    """Serve a page at `/`, and `GET /messages?to=…` as JSON, newest first, on 127.0.0.1 while the block runs.

    Yields the port; port 0 takes any free one. `templates` are those of the server, None for the built-in ones.
    """
    rendering = templates or load_templates(None)

    async def messages(request: web.Request) -> web.Response:
        wanted = request.query.get("to")
        return web.json_response(
            [
                {"channel": message.channel, "to": message.destination, "code": message.code}
                for message in reversed(console.messages)
                if wanted in {None, message.destination}
            ]
        )

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=_messages_page(console, rendering), content_type="text/html")

    application = web.Application()
    application.add_routes([web.get("/", page), web.get("/messages", messages)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _messages_page(console: Console, templates: Templates) -> str:
    sent = list(zip(console.times, console.messages, strict=True))[-_SHOWN:]
    phone = [
        (time, _bubble(time, message, templates)) for time, message in sent if message.channel is not Channel.EMAIL
    ]
    mailbox = [
        (time, _mail(time, message.destination, templates.render(message, now=time)))
        for time, message in sent
        if message.channel is Channel.EMAIL
    ] + [(time, _mail(time, address, rendered)) for time, address, rendered in list(console.mails)[-_SHOWN:]]
    shown = ["".join(html for _, html in sorted(each, reverse=True)) or "<p>None yet.</p>" for each in (phone, mailbox)]
    return _PAGE.format(phone=shown[0], mailbox=shown[1])


def _bubble(time: datetime, message: Message, templates: Templates) -> str:
    # Of WhatsApp's messages Meta has the template: this is its English text for codes.
    text = (
        f"{message.code} is your verification code."
        if message.channel is Channel.WHATSAPP
        else templates.render(message, now=time).text
    )
    return (
        f"<article><header>{escape(message.channel)} to {escape(message.destination)}, {time:%H:%M:%S} UTC</header>"
        f"<p>{escape(text)}</p></article>"
    )


def _mail(time: datetime, address: str, rendered: Rendered) -> str:
    body = (
        f'<iframe sandbox title="{escape(rendered.subject)}" srcdoc="{escape(rendered.html)}"></iframe>'
        if rendered.html
        else f"<p>{escape(rendered.text)}</p>"
    )
    return (
        f"<article><header>to {escape(address)}, {time:%H:%M:%S} UTC</header>"
        f"<strong>{escape(rendered.subject)}</strong>{body}</article>"
    )
