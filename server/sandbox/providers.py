"""Stand-ins for Twilio, Vonage and the WhatsApp Cloud API: they accept each message, or give a scripted answer."""

import asyncio
import json
from base64 import b64encode
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from typing import Any

from aiohttp import web


class Conduct(Enum):
    """How an answer reaches the caller."""

    ANSWER = auto()
    TRUNCATE = auto()
    """The connection ends in the middle of the body."""
    RESET = auto()
    """The connection is reset after the request was read."""
    HANG = auto()
    """No answer, until `release`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one call."""

    status: int = 200
    body: str = ""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    conduct: Conduct = Conduct.ANSWER


@dataclass(frozen=True, slots=True)
class Received:
    """One call that a provider received, accepted or not."""

    provider: str
    to: str
    text: str
    """The message, or the code of a WhatsApp template."""
    path: str
    headers: Mapping[str, str]
    fields: Mapping[str, Any]


def json_answer(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON answer."""
    return Answer(status, json.dumps(body), headers=headers or {})


def twilio_error(code: int, *, status: int = 400, text: str = "") -> Answer:
    """Twilio's refusal. The text of a real one often quotes the recipient's number."""
    return json_answer({"code": code, "message": text, "status": status}, status=status)


def vonage_status(status: str, *, text: str = "") -> Answer:
    """Vonage's answer for one part; always HTTP 200."""
    part = {"status": status, "message-id": "v-1"} if status == "0" else {"status": status, "error-text": text}
    return json_answer({"message-count": "1", "messages": [part]})


def whatsapp_error(code: int, *, status: int = 400, text: str = "") -> Answer:
    """Meta's refusal."""
    return json_answer({"error": {"message": text, "type": "OAuthException", "code": code}}, status=status)


class ProvidersSandbox:
    """The three providers in one web application, distinguished by their paths."""

    def __init__(self, *, keep: int = 1000) -> None:
        """`received` holds the last `keep` calls."""
        self.received: deque[Received] = deque(maxlen=keep)
        self._next: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self._released = asyncio.Event()
        self._numbers = count(1)

    def play(self, provider: str, *answers: Answer) -> None:
        """Answer the next calls to this provider with these answers, in this order; later calls are accepted again."""
        self._next[provider].extend(answers)

    def release(self) -> None:
        """Answer every call that hangs."""
        self._released.set()

    def application(self) -> web.Application:
        """The web application to serve."""
        application = web.Application()
        application.router.add_post("/2010-04-01/Accounts/{account_sid}/Messages.json", self._twilio)
        application.router.add_post("/sms/json", self._vonage)
        application.router.add_post("/{version}/{phone_number_id}/messages", self._whatsapp)
        return application

    async def _twilio(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self._record("twilio", request, to=form.get("To", ""), text=form.get("Body", ""), fields=form)
        body = {"sid": f"SM{next(self._numbers):032x}", "status": "queued", "error_code": None, "to": form.get("To")}
        return await self._answer("twilio", request, json_answer(body, status=201))

    async def _vonage(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self._record("vonage", request, to=form.get("to", ""), text=form.get("text", ""), fields=form)
        part = {"to": form.get("to"), "message-id": f"v-{next(self._numbers)}", "status": "0"}
        return await self._answer("vonage", request, json_answer({"message-count": "1", "messages": [part]}))

    async def _whatsapp(self, request: web.Request) -> web.StreamResponse:
        document = await request.json()
        code = document["template"]["components"][0]["parameters"][0]["text"]
        self._record("whatsapp", request, to=document["to"], text=code, fields=document)
        message = {"id": _wamid(document["to"], next(self._numbers)), "message_status": "accepted"}
        body = {"messaging_product": "whatsapp", "messages": [message]}
        return await self._answer("whatsapp", request, json_answer(body))

    def _record(self, provider: str, request: web.Request, *, to: str, text: str, fields: Mapping[str, Any]) -> None:
        self.received.append(Received(provider, to, text, request.path, dict(request.headers), fields))

    async def _answer(self, provider: str, request: web.Request, accepted: Answer) -> web.StreamResponse:
        planned = self._next[provider]
        answer = planned.popleft() if planned else accepted
        if answer.conduct is Conduct.HANG:
            await self._released.wait()
        elif answer.conduct is Conduct.RESET and request.transport is not None:
            request.transport.abort()
        elif answer.conduct is Conduct.TRUNCATE:
            return await _truncated(request, answer)
        return web.Response(
            status=answer.status, text=answer.body, content_type=answer.content_type, headers=answer.headers
        )


def _wamid(to: str, number: int) -> str:
    """A message id as Meta makes them: it contains the recipient's number."""
    content = b"\x1c\x18" + bytes([len(to)]) + to.encode() + b"\x15\x02\x00\x11\x18\x12" + b"%018X\x00" % number
    return f"wamid.{b64encode(content).decode()}"


async def _truncated(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send half of the body under the Content-Length of the whole, and close the connection."""
    body = answer.body.encode()
    response = web.StreamResponse(status=answer.status, headers={"Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
