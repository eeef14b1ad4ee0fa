"""The API over HTTP: reads a call, lets a fault have its way with it, answers as Stripe does."""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from http import HTTPStatus
from typing import Any

from aiohttp import web

from server.sandbox.stripe.actions import ACTIONS, set_path
from server.sandbox.stripe.books import Books, Object
from server.sandbox.stripe.faults import Fault, Faults
from server.sandbox.stripe.idempotency import Answer, Call, Keys
from server.sandbox.stripe.operations import Operation, find_operation
from server.sandbox.stripe.parameters import check, decode
from server.sandbox.stripe.refusal import Refusal

_LOG_LENGTH = 20_000
_GATEWAY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"
_ERRORS: dict[str, dict[str, Any]] = {
    "rate_limit": {"message": "Rate limit exceeded.", "status": HTTPStatus.TOO_MANY_REQUESTS, "code": "rate_limit"},
    "lock_timeout": {"message": "This object is locked.", "status": HTTPStatus.CONFLICT, "code": "lock_timeout"},
    "server_error": {"message": "An error.", "status": HTTPStatus.INTERNAL_SERVER_ERROR, "kind": "api_error"},
    "refuse": {"message": "Refused by a fault."},
}


class Api:
    """Everything under /v1."""

    def __init__(self, books: Books, faults: Faults, keys: Keys, *, api_key: str, changed: Callable[[], None]) -> None:
        self._books = books
        self._faults = faults
        self._keys = keys
        self._api_key = api_key
        self._changed = changed
        self.log: deque[Object] = deque(maxlen=_LOG_LENGTH)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one call."""
        try:
            call = await self._read(request)
        except Refusal as refusal:
            return await _send(request, _refused(refusal), None)
        fault = self._faults.take(method=call.method, path=call.path, content=json.dumps(call.parameters))
        entry: Object = {
            "id": call.request_id, "method": call.method, "path": call.path, "parameters": call.parameters,
            "idempotency_key": call.key, "fault": fault.kind if fault else None, "status": None, "replayed": False,
        }  # fmt: skip
        self.log.append(entry)
        answer = await self._answer(call, fault, authorization=request.headers.get("Authorization", ""))
        entry["status"], entry["replayed"] = answer.status, "Idempotent-Replayed" in answer.headers
        echoed = {"Request-Id": call.request_id, "Stripe-Version": request.headers.get("Stripe-Version", "")}
        if call.key is not None:
            echoed["Idempotency-Key"] = call.key
        return await _send(request, replace(answer, headers=answer.headers | echoed), fault)

    async def _read(self, request: web.Request) -> Call:
        form = await request.post() if request.method == "POST" else {}
        pairs = [*request.query.items(), *((name, str(value)) for name, value in form.items())]
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        return Call(self._books.new_id("req_"), request.method, request.path, decode(pairs), key)

    async def _answer(self, call: Call, fault: Fault | None, *, authorization: str) -> Answer:
        if fault and fault.kind == "drop_before":
            return Answer(0, "")
        if authorization != f"Bearer {self._api_key}":
            return _refused(Refusal("Invalid API Key provided.", status=HTTPStatus.UNAUTHORIZED))
        instead = _error(fault)
        if instead is None or (fault and fault.options.get("executes")):
            answer = await self._run(call, fault)
        if instead is None:
            return answer
        if fault and fault.options.get("stored"):
            self._keys.keep(call, instead)
        return instead

    async def _run(self, call: Call, fault: Fault | None) -> Answer:
        try:
            answer = self._keys.recall(call)
            if answer is None:
                with self._keys.in_use(call):
                    if fault and fault.kind == "hold_before":
                        await fault.hold()
                    answer = self._execute(call, fault)
        except Refusal as refusal:
            answer = _refused(refusal)
        self._changed()
        if fault and fault.kind == "hold_after":
            await fault.hold()
        return _changed_answer(answer, fault)

    def _execute(self, call: Call, fault: Fault | None) -> Answer:
        found = find_operation(call.method, call.path)
        if found is None:
            raise Refusal(f"Unrecognized request URL ({call.method}: {call.path}).", status=HTTPStatus.NOT_FOUND)
        operation, identifier = found
        self._books.request = {"id": call.request_id, "idempotency_key": call.key}
        try:
            given = _changed_parameters(call.parameters, fault)
            self._act(fault, "act_before", identifier)
            body = self._operate(operation, identifier, given, repeat=bool(fault and fault.kind == "twice"))
            answer = Answer(HTTPStatus.OK, json.dumps(body, indent=2))
            self._act(fault, "act_after", identifier or body.get("invoice") or body.get("id", ""))
        except Refusal as refusal:
            if not refusal.stored:
                raise
            answer = _refused(refusal)
        finally:
            self._books.request = {"id": None, "idempotency_key": None}
        self._keys.keep(call, answer)
        return answer

    def _operate(self, operation: Operation, identifier: str, given: Object, *, repeat: bool) -> Object:
        def once() -> Object:
            checked = check(given, schema=operation.schema, required=operation.required)
            return operation.run(self._books, identifier, checked)

        if repeat:
            once()
        return once()

    def _act(self, fault: Fault | None, kind: str, identifier: str) -> None:
        if fault and fault.kind == kind:
            invoice = self._books.find("invoice", identifier)
            with suppress(Refusal):  # what the invoice's state forbids does not happen
                ACTIONS[fault.options["action"]](self._books, invoice, **fault.options.get("options", {}))


def _refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, json.dumps(refusal.body(), indent=2), refusal.headers())


def _error(fault: Fault | None) -> Answer | None:
    if fault is not None and fault.kind == "bad_gateway":
        return Answer(HTTPStatus.BAD_GATEWAY, _GATEWAY_PAGE, content_type="text/html")
    if fault is None or fault.kind not in _ERRORS:
        return None
    given = {name: value for name, value in fault.options.items() if name not in {"stored", "executes", "type"}}
    if "type" in fault.options:
        given["kind"] = fault.options["type"]
    return _refused(Refusal(**(_ERRORS[fault.kind] | given)))


def _changed_parameters(given: Object, fault: Fault | None) -> Object:
    if not fault or fault.kind != "change_parameters":
        return given
    multiplied = {
        name: str(Decimal(given[name]) * factor)
        for name, factor in fault.options.get("multiply", {}).items()
        if name in given
    }
    changed: Object = given | multiplied | fault.options.get("set", {})
    return changed


def _changed_answer(answer: Answer, fault: Fault | None) -> Answer:
    if not fault or fault.kind != "change_answer":
        return answer
    body: Any = json.loads(answer.body)
    for path, value in fault.options["set"].items():
        set_path(body, path, value)
    return replace(answer, body=json.dumps(body, indent=2))


async def _send(request: web.Request, answer: Answer, fault: Fault | None) -> web.StreamResponse:
    kind = fault.kind if fault else ""
    if kind in {"drop_before", "drop_after"}:
        return _drop(request)
    body = answer.body.encode()
    if kind == "truncated":
        body = body[: len(body) // 2]
    if kind != "cut_off":
        return web.Response(
            body=body, status=answer.status, headers=answer.headers, content_type=answer.content_type, charset="utf-8"
        )
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_type, response.content_length = answer.content_type, len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    await asyncio.sleep(0)
    return _drop(request)


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response()
