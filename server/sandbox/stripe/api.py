"""The API over HTTP: reads a call, applies a fault to it, and answers as Stripe does."""

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

from server.sandbox.stripe.account import Object, StripeAccount
from server.sandbox.stripe.errors import ApiError
from server.sandbox.stripe.faults import Fault, Faults
from server.sandbox.stripe.idempotency import Call, IdempotencyKeys, Response
from server.sandbox.stripe.invoice_actions import ACTIONS, set_path
from server.sandbox.stripe.operations import Operation, find_operation
from server.sandbox.stripe.parameters import decode, validate

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

    def __init__(
        self,
        account: StripeAccount,
        faults: Faults,
        keys: IdempotencyKeys,
        *,
        api_key: str,
        save: Callable[[], None],
    ) -> None:
        self._account = account
        self._faults = faults
        self._keys = keys
        self._api_key = api_key
        self._save = save
        self.log: deque[Object] = deque(maxlen=_LOG_LENGTH)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one call."""
        try:
            call = await self._read(request)
        except ApiError as error:
            return await _send(request, _error_response(error), None)
        fault = self._faults.match(method=call.method, path=call.path, content=json.dumps(call.parameters))
        entry: Object = {
            "id": call.request_id, "method": call.method, "path": call.path, "parameters": call.parameters,
            "idempotency_key": call.key, "fault": fault.kind if fault else None, "status": None, "replayed": False,
        }  # fmt: skip
        self.log.append(entry)
        response = await self._respond(call, fault, authorization=request.headers.get("Authorization", ""))
        entry["status"], entry["replayed"] = response.status, "Idempotent-Replayed" in response.headers
        echoed = {"Request-Id": call.request_id, "Stripe-Version": request.headers.get("Stripe-Version", "")}
        if call.key is not None:
            echoed["Idempotency-Key"] = call.key
        return await _send(request, replace(response, headers=response.headers | echoed), fault)

    async def _read(self, request: web.Request) -> Call:
        form = await request.post() if request.method == "POST" else {}
        pairs = [*request.query.items(), *((name, str(value)) for name, value in form.items())]
        key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        return Call(self._account.new_id("req_"), request.method, request.path, decode(pairs), key)

    async def _respond(self, call: Call, fault: Fault | None, *, authorization: str) -> Response:
        if fault and fault.kind == "drop_before":
            return Response(0, "")
        if authorization != f"Bearer {self._api_key}":
            return _error_response(ApiError("Invalid API Key provided.", status=HTTPStatus.UNAUTHORIZED))
        replacement = _fault_response(fault)
        if replacement is None or (fault and fault.options.get("executes")):
            response = await self._run(call, fault)
        if replacement is None:
            return response
        if fault and fault.options.get("stored"):
            self._keys.store(call, replacement)
        return replacement

    async def _run(self, call: Call, fault: Fault | None) -> Response:
        try:
            response = self._keys.stored_response(call)
            if response is None:
                with self._keys.in_use(call):
                    if fault and fault.kind == "hold_before":
                        await fault.hold()
                    response = self._execute(call, fault)
        except ApiError as error:
            response = _error_response(error)
        self._save()
        if fault and fault.kind == "hold_after":
            await fault.hold()
        return _apply_to_response(response, fault)

    def _execute(self, call: Call, fault: Fault | None) -> Response:
        found = find_operation(call.method, call.path)
        if found is None:
            raise ApiError(f"Unrecognized request URL ({call.method}: {call.path}).", status=HTTPStatus.NOT_FOUND)
        operation, identifier = found
        self._account.request = {"id": call.request_id, "idempotency_key": call.key}
        try:
            given = _apply_to_parameters(call.parameters, fault)
            self._run_action(fault, "act_before", identifier)
            body = self._call_operation(operation, identifier, given, repeat=bool(fault and fault.kind == "twice"))
            response = Response(HTTPStatus.OK, json.dumps(body, indent=2))
            self._run_action(fault, "act_after", identifier or body.get("invoice") or body.get("id", ""))
        except ApiError as error:
            if not error.stored:
                raise
            response = _error_response(error)
        finally:
            self._account.request = {"id": None, "idempotency_key": None}
        self._keys.store(call, response)
        return response

    def _call_operation(self, operation: Operation, identifier: str, given: Object, *, repeat: bool) -> Object:
        def once() -> Object:
            checked = validate(given, schema=operation.schema, required=operation.required)
            return operation.run(self._account, identifier, checked)

        if repeat:
            once()
        return once()

    def _run_action(self, fault: Fault | None, kind: str, identifier: str) -> None:
        if fault and fault.kind == kind:
            invoice = self._account.find("invoice", identifier)
            with suppress(ApiError):  # the invoice's state may forbid the action
                ACTIONS[fault.options["action"]](self._account, invoice, **fault.options.get("options", {}))


def _error_response(error: ApiError) -> Response:
    return Response(error.status, json.dumps(error.body(), indent=2), error.headers())


def _fault_response(fault: Fault | None) -> Response | None:
    if fault is not None and fault.kind == "bad_gateway":
        return Response(HTTPStatus.BAD_GATEWAY, _GATEWAY_PAGE, content_type="text/html")
    if fault is None or fault.kind not in _ERRORS:
        return None
    given = {name: value for name, value in fault.options.items() if name not in {"stored", "executes", "type"}}
    if "type" in fault.options:
        given["kind"] = fault.options["type"]
    return _error_response(ApiError(**(_ERRORS[fault.kind] | given)))


def _apply_to_parameters(given: Object, fault: Fault | None) -> Object:
    if not fault or fault.kind != "change_parameters":
        return given
    multiplied = {
        name: str(Decimal(given[name]) * factor)
        for name, factor in fault.options.get("multiply", {}).items()
        if name in given
    }
    changed: Object = given | multiplied | fault.options.get("set", {})
    return changed


def _apply_to_response(response: Response, fault: Fault | None) -> Response:
    if not fault or fault.kind != "change_answer":
        return response
    body: Any = json.loads(response.body)
    for path, value in fault.options["set"].items():
        set_path(body, path, value)
    return replace(response, body=json.dumps(body, indent=2))


async def _send(request: web.Request, response: Response, fault: Fault | None) -> web.StreamResponse:
    kind = fault.kind if fault else ""
    if kind in {"drop_before", "drop_after"}:
        return _drop(request)
    body = response.body.encode()
    if kind == "truncated":
        body = body[: len(body) // 2]
    if kind != "cut_off":
        return web.Response(
            body=body,
            status=response.status,
            headers=response.headers,
            content_type=response.content_type,
            charset="utf-8",
        )
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_type, stream.content_length = response.content_type, len(body)
    await stream.prepare(request)
    await stream.write(body[: len(body) // 2])
    await asyncio.sleep(0)
    return _drop(request)


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response()
