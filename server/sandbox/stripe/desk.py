"""What the control API's handlers share: the parts of the stand-in, and how JSON comes in and goes out."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web

from server.sandbox.stripe.api import Api
from server.sandbox.stripe.books import Books
from server.sandbox.stripe.delivery import Courier
from server.sandbox.stripe.faults import Faults
from server.sandbox.stripe.idempotency import Keys
from server.sandbox.stripe.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Desk:
    """Every part of one stand-in."""

    books: Books
    faults: Faults
    keys: Keys
    api: Api
    courier: Courier
    changed: Callable[[], None]
    """To be called after each change, so that it is saved."""


async def options_of(request: web.Request, *known: str) -> dict[str, Any]:
    """The body's JSON object (none: empty); ValueError when it is something else or names an unknown option."""
    text = await request.text()
    body = json.loads(text) if text else {}
    if not isinstance(body, dict):
        raise TypeError("the body must be a JSON object")
    if known and set(body) - set(known):
        raise ValueError(f"the options are {', '.join(known)}")
    return body


def as_json(
    desk: Desk, handler: Callable[[Desk, web.Request], Awaitable[object]]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that answers JSON. Unusable: 400; not there: 404; forbidden by the state: 409."""

    async def handle(request: web.Request) -> web.Response:
        try:
            answer = await handler(desk, request)
        except Refusal as refusal:
            status = HTTPStatus.CONFLICT if refusal.stored else refusal.status
            return web.json_response({"error": refusal.message}, status=status)
        except KeyError as error:
            return web.json_response({"error": f"missing or unknown: {error}"}, status=HTTPStatus.BAD_REQUEST)
        except (ValueError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=HTTPStatus.BAD_REQUEST)
        desk.changed()
        return web.json_response(answer)

    return handle
