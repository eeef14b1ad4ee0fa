"""The messages that a development server has sent, as its recipients would read them, and as JSON."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from html import escape

from aiohttp import web

from server.providers.console import Console
from server.providers.provider import Channel, Message
from server.providers.templates import Rendered, Templates, load_templates
from server.sandbox.frame import framed

_SHOWN = 50
_CHANNEL_NAMES = {Channel.WHATSAPP: "WhatsApp", Channel.SMS: "SMS"}
_STYLE = """
.columns { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
article header { color: var(--faint); font-size: .85rem; }
article p { margin: 0; white-space: pre-line; }
.screen { max-width: 22rem; margin: 0 auto; padding: 2.5rem 1rem 1.5rem; border: .5rem solid var(--control);
          border-radius: 2rem; background: var(--card); }
.screen article { margin: 0 0 1rem; }
.bubble { display: inline-block; margin: 0 0 .15rem; padding: .5rem .85rem; border-radius: 1.1rem 1.1rem 1.1rem .25rem;
          background: var(--plain); }
.whatsapp .bubble { background: var(--good); color: var(--on-good); }
.mail { padding: 0; overflow: hidden; }
.mail header { padding: .75rem 1.25rem; border-bottom: 1px solid var(--line); }
.mail h3 { margin: 0; color: var(--text); font-size: 1.05rem; }
.mail > p { padding: 1rem 1.25rem; }
iframe { display: block; width: 100%; height: 19rem; border: 0; }
"""
_CONTENT = """<p>What was sent since the server began, newest first; also <a href="/messages">as JSON</a>.</p>
<div class="columns">
<section aria-labelledby="phone"><h2 id="phone">On a phone</h2><div class="screen">{phone}</div></section>
<section aria-labelledby="mailbox"><h2 id="mailbox">In a mailbox</h2>{mailbox}</section>
</div>"""


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
                {
                    "channel": message.channel,
                    "to": message.destination,
                    "code": message.code,
                    "text": _text(time, message, rendering),
                }
                for time, message in reversed(list(zip(console.times, console.messages, strict=True)))
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
    return framed("Messages", _CONTENT.format(phone=shown[0], mailbox=shown[1]), style=_STYLE)


def _text(time: datetime, message: Message, templates: Templates) -> str:
    # Of WhatsApp's messages Meta has the template: this is its English text for codes.
    if message.channel is Channel.WHATSAPP:
        return f"{message.code} is your verification code."
    return templates.render(message, now=time).text


def _bubble(time: datetime, message: Message, templates: Templates) -> str:
    text = _text(time, message, templates)
    about = f"{_CHANNEL_NAMES[message.channel]} to {escape(message.destination)}, {time:%H:%M:%S} UTC"
    return (
        f'<article class="{message.channel.lower()}"><p class="bubble">{escape(text)}</p>'
        f"<header>{about}</header></article>"
    )


def _mail(time: datetime, address: str, rendered: Rendered) -> str:
    body = (
        f'<iframe sandbox title="{escape(rendered.subject)}" srcdoc="{escape(rendered.html)}"></iframe>'
        if rendered.html
        else f"<p>{escape(rendered.text)}</p>"
    )
    return (
        f'<article class="card mail"><header><h3>{escape(rendered.subject)}</h3>'
        f"to {escape(address)}, {time:%H:%M:%S} UTC</header>{body}</article>"
    )
