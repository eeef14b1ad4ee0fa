"""Webhooks: signs each event as Stripe does and posts it until the endpoint takes it."""

import asyncio
import copy
import hashlib
import hmac
import json
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from server.sandbox.stripe.actions import set_path
from server.sandbox.stripe.books import Books, Object
from server.sandbox.stripe.faults import Fault, Faults

_LONGEST_DELAY_SECONDS = 30.0
_LOG_LENGTH = 20_000


def sign(payload: str, *, secrets: Sequence[str], timestamp: int) -> str:
    """The `Stripe-Signature` header: HMAC-SHA256 of "timestamp.payload" under each secret."""
    signed = f"{timestamp}.{payload}".encode()
    digests = (hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets)
    return ",".join([f"t={timestamp}", *(f"v1={digest}" for digest in digests)])


@dataclass(frozen=True, slots=True)
class Signing:
    """How to sign, when not as usual."""

    age_seconds: int = 0
    """How long ago the signature says it was made; negative lies in the future."""
    secret: str | None = None
    """Instead of the endpoint's own."""


_USUAL = Signing()


class Courier:
    """Delivers events: at once, in no promised order, again and again with growing delays until one is taken."""

    def __init__(self, books: Books, faults: Faults, *, changed: Callable[[], None]) -> None:
        self._books = books
        self._faults = faults
        self._changed = changed
        self._session = aiohttp.ClientSession()
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: list[Object] = []
        self.held: dict[str, Object] = {}
        self.log: deque[Object] = deque(maxlen=_LOG_LENGTH)

    def post(self, event: Object) -> None:
        """Start delivering a new event, unless a fault has other plans for it."""
        fault = self._faults.take(event=event["type"], content=json.dumps(event["data"]))
        kind = fault.kind if fault else ""
        if kind == "lose":
            return
        if kind == "hold":
            self.held[event["id"]] = event
        elif kind == "reorder":
            self._late.append(event)
        else:
            late, self._late = self._late, []
            self._start(self._deliver_in_turn(self._planned(event, fault), late, _signing(fault)))

    def _planned(self, event: Object, fault: Fault | None) -> list[Object]:
        if fault and fault.kind == "duplicate":
            return [event] * (1 + int(fault.options.get("copies", 1)))
        if fault and fault.kind == "second_id":
            second = self._books.add(copy.deepcopy(event) | {"id": self._books.new_id("evt_")})
            self._books.await_delivery(second)
            return [event, second]
        if fault and fault.kind == "change_event":
            for path, value in fault.options["set"].items():
                set_path(event, path, value)
        return [event]

    async def _deliver_in_turn(self, events: list[Object], late: list[Object], signing: Signing) -> None:
        await asyncio.gather(*(self.deliver(event, signing) for event in events))
        for event in late:
            await self.deliver(event)

    async def deliver(self, event: Object, signing: Signing = _USUAL) -> list[int]:
        """The status of a first attempt at each endpoint; what is not taken goes on in the background."""
        endpoints = list(self._books.undelivered.get(event["id"], self._subscribed(event)))
        statuses = await asyncio.gather(*(self._attempt(event, endpoint, 1, signing) for endpoint in endpoints))
        for endpoint, status in zip(endpoints, statuses, strict=True):
            if not _taken(status):
                self._start(self._repeat(event, endpoint))
        return list(statuses)

    async def send(self, payload: str, signing: Signing = _USUAL, header: str | None = None) -> list[Object]:
        """Post any body to every enabled endpoint, once; `header` replaces the signature."""
        return [await self._post(endpoint, payload, signing, header) for endpoint in self._endpoints()]

    def resume(self) -> None:
        """Go on with what an earlier run left undelivered."""
        for identifier in list(self._books.undelivered):
            self._start(self._deliver_in_turn([self._books.find("event", identifier)], [], _USUAL))

    async def idle(self) -> None:
        """Until nothing is being delivered or waiting to be tried again."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Stop; nothing is delivered any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _endpoints(self) -> list[Object]:
        return [each for each in self._books.objects["webhook_endpoint"].values() if each["status"] == "enabled"]

    def _subscribed(self, event: Object) -> list[str]:
        return [each["id"] for each in self._endpoints() if {"*", event["type"]} & set(each["enabled_events"])]

    async def _repeat(self, event: Object, endpoint_id: str) -> None:
        delay = float(self._books.settings["retry_delay_seconds"])
        for attempt in range(2, 2 + int(self._books.settings["retry_limit"])):
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
            if endpoint_id not in self._books.undelivered.get(event["id"], []):
                return
            if _taken(await self._attempt(event, endpoint_id, attempt, _USUAL)):
                return

    async def _attempt(self, event: Object, endpoint_id: str, attempt: int, signing: Signing) -> int:
        endpoint = self._books.objects["webhook_endpoint"].get(endpoint_id)
        if endpoint is None:
            return 0
        payload = json.dumps(event | {"api_version": endpoint["api_version"]}, indent=2)
        result = await self._post(endpoint, payload, signing, None)
        status = int(result["status"])
        self.log.append(
            {"event": event["id"], "type": event["type"], "endpoint": endpoint_id, "attempt": attempt, "status": status}
        )
        if _taken(status):
            self._books.delivered(event, endpoint_id)
            self._changed()
        return status

    async def _post(self, endpoint: Object, payload: str, signing: Signing, header: str | None) -> Object:
        secrets = [signing.secret] if signing.secret else self._books.secrets[endpoint["id"]]
        signature = header or sign(payload, secrets=secrets, timestamp=int(time.time()) - signing.age_seconds)
        headers = {"Stripe-Signature": signature, "Content-Type": "application/json; charset=utf-8"}
        timeout = aiohttp.ClientTimeout(total=float(self._books.settings["delivery_timeout_seconds"]))
        try:
            async with self._session.post(endpoint["url"], data=payload, headers=headers, timeout=timeout) as response:
                return {"status": response.status, "body": await response.text()}
        except (aiohttp.ClientError, TimeoutError) as error:
            return {"status": 0, "body": type(error).__name__}


def _signing(fault: Fault | None) -> Signing:
    return Signing(**fault.options) if fault and fault.kind == "missign" else _USUAL


def _taken(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
