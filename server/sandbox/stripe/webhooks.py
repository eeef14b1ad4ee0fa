"""Webhooks: their endpoints, and the delivery of events, signed as Stripe signs them."""

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

from server.sandbox.stripe import invoices
from server.sandbox.stripe.account import Object, StripeAccount
from server.sandbox.stripe.faults import Fault, Faults
from server.sandbox.stripe.invoice_actions import set_path
from server.sandbox.stripe.objects import new_endpoint

DEFAULT_ENDPOINT = "we_default"
DEFAULT_EVENTS = [
    "invoice.paid",
    "invoice.finalized",
    "invoice.finalization_failed",
    "invoice.voided",
    "invoice.marked_uncollectible",
    "invoice.payment_failed",
    "invoice.payment_action_required",
    "invoice.overpaid",
    "charge.refunded",
    "refund.created",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.closed",
    "credit_note.created",
    "checkout.session.completed",
    "payment_method.automatically_updated",
    "payment_method.detached",
    "payment_method.updated",
]
"""What the default endpoint subscribes to. Without invoice.payment_succeeded, which repeats invoice.paid."""

_LONGEST_DELAY_SECONDS = 30.0
_LOG_LENGTH = 20_000


def create_endpoint(account: StripeAccount, given: Object) -> Object:
    """Create an endpoint; only this response shows its secret."""
    endpoint = new_endpoint(account, url=given["url"], events=given["enabled_events"])
    account.add(endpoint | {name: given[name] for name in ("api_version", "description", "metadata") if name in given})
    secret = account.new_id("whsec_")
    account.secrets[endpoint["id"]] = [secret]
    return account.find("webhook_endpoint", endpoint["id"]) | {"secret": secret}


def update_endpoint(account: StripeAccount, endpoint: Object, given: Object) -> Object:
    """Change an endpoint, or enable or disable it."""
    if "disabled" in given:
        endpoint["status"] = "disabled" if given.pop("disabled") else "enabled"
    return invoices.update_fields(account, endpoint, given)


def delete_endpoint(account: StripeAccount, endpoint: Object, _given: Object) -> Object:
    """Delete an endpoint."""
    del account.objects["webhook_endpoint"][endpoint["id"]]
    return {"id": endpoint["id"], "object": "webhook_endpoint", "deleted": True}


def set_default_endpoint(account: StripeAccount, *, url: str | None, secret: str) -> Object:
    """Create the default endpoint with this secret; without a URL it is disabled."""
    fresh = new_endpoint(account, url="", events=list(DEFAULT_EVENTS)) | {"id": DEFAULT_ENDPOINT}
    endpoint = account.objects["webhook_endpoint"].setdefault(DEFAULT_ENDPOINT, fresh)
    endpoint["enabled_events"] = fresh["enabled_events"]  # a saved one may be of an earlier version
    account.secrets[DEFAULT_ENDPOINT] = [secret]
    return set_default_url(account, url)


def set_default_url(account: StripeAccount, url: str | None) -> Object:
    """Set the default endpoint's address; None disables it."""
    endpoint = account.find("webhook_endpoint", DEFAULT_ENDPOINT)
    endpoint.update(url=url or "", status="enabled" if url else "disabled")
    return endpoint


def roll_secret(account: StripeAccount, secret: str | None) -> list[str]:
    """Add a secret to the default endpoint; the old one signs too until it is expired."""
    account.secrets[DEFAULT_ENDPOINT].insert(0, secret or account.new_id("whsec_"))
    return account.secrets[DEFAULT_ENDPOINT]


def expire_secrets(account: StripeAccount) -> list[str]:
    """Keep only the newest secret of the default endpoint."""
    del account.secrets[DEFAULT_ENDPOINT][1:]
    return account.secrets[DEFAULT_ENDPOINT]


def sign(payload: str, *, secrets: Sequence[str], timestamp: int) -> str:
    """The `Stripe-Signature` header: HMAC-SHA256 of "timestamp.payload" under each secret."""
    signed = f"{timestamp}.{payload}".encode()
    digests = (hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets)
    return ",".join([f"t={timestamp}", *(f"v1={digest}" for digest in digests)])


@dataclass(frozen=True, slots=True)
class SignatureOptions:
    """Deviations from a valid signature."""

    age_seconds: int = 0
    """Age of the signature's timestamp; negative: in the future."""
    secret: str | None = None
    """Replaces the endpoint's own."""


_VALID_SIGNATURE = SignatureOptions()


class WebhookSender:
    """Delivers events at once and in no guaranteed order, and retries with growing delays until they are accepted."""

    def __init__(self, account: StripeAccount, faults: Faults, *, save: Callable[[], None]) -> None:
        self._account = account
        self._faults = faults
        self._save = save
        self._session = aiohttp.ClientSession()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reordered: list[Object] = []
        self.held: dict[str, Object] = {}
        self.log: deque[Object] = deque(maxlen=_LOG_LENGTH)

    def dispatch(self, event: Object) -> None:
        """Start delivering a new event, subject to the faults."""
        fault = self._faults.match(event=event["type"], content=json.dumps(event["data"]))
        kind = fault.kind if fault else ""
        if kind == "lose":
            return
        if kind == "hold":
            self.held[event["id"]] = event
        elif kind == "reorder":
            self._reordered.append(event)
        else:
            reordered, self._reordered = self._reordered, []
            self._start(
                self._deliver_in_order(self._events_to_deliver(event, fault), reordered, _signature_options(fault))
            )

    def _events_to_deliver(self, event: Object, fault: Fault | None) -> list[Object]:
        if fault and fault.kind == "duplicate":
            return [event] * (1 + int(fault.options.get("copies", 1)))
        if fault and fault.kind == "second_id":
            second = self._account.add(copy.deepcopy(event) | {"id": self._account.new_id("evt_")})
            self._account.expect_delivery(second)
            return [event, second]
        if fault and fault.kind == "change_event":
            for path, value in fault.options["set"].items():
                set_path(event, path, value)
        return [event]

    async def _deliver_in_order(
        self, events: list[Object], reordered: list[Object], signature: SignatureOptions
    ) -> None:
        await asyncio.gather(*(self.deliver(event, signature) for event in events))
        for event in reordered:
            await self.deliver(event)

    async def deliver(self, event: Object, signature: SignatureOptions = _VALID_SIGNATURE) -> list[int]:
        """The status of the first attempt at each endpoint; failed ones are retried in the background."""
        endpoints = list(self._account.undelivered.get(event["id"], self._subscribed(event)))
        statuses = await asyncio.gather(*(self._attempt(event, endpoint, 1, signature) for endpoint in endpoints))
        for endpoint, status in zip(endpoints, statuses, strict=True):
            if not _accepted(status):
                self._start(self._retry(event, endpoint))
        return list(statuses)

    async def send(
        self, payload: str, signature: SignatureOptions = _VALID_SIGNATURE, header: str | None = None
    ) -> list[Object]:
        """Post any body to every enabled endpoint, once; `header` replaces the signature."""
        return [await self._post(endpoint, payload, signature, header) for endpoint in self._endpoints()]

    def resume(self) -> None:
        """Continue the deliveries that an earlier run did not finish."""
        for identifier in list(self._account.undelivered):
            self._start(self._deliver_in_order([self._account.find("event", identifier)], [], _VALID_SIGNATURE))

    async def wait_until_idle(self) -> None:
        """Wait until no delivery is running or due for a retry."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Stop every delivery."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _endpoints(self) -> list[Object]:
        return [each for each in self._account.objects["webhook_endpoint"].values() if each["status"] == "enabled"]

    def _subscribed(self, event: Object) -> list[str]:
        return [each["id"] for each in self._endpoints() if {"*", event["type"]} & set(each["enabled_events"])]

    async def _retry(self, event: Object, endpoint_id: str) -> None:
        delay = float(self._account.settings["retry_delay_seconds"])
        for attempt in range(2, 2 + int(self._account.settings["retry_limit"])):
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
            if endpoint_id not in self._account.undelivered.get(event["id"], []):
                return
            if _accepted(await self._attempt(event, endpoint_id, attempt, _VALID_SIGNATURE)):
                return

    async def _attempt(self, event: Object, endpoint_id: str, attempt: int, signature: SignatureOptions) -> int:
        endpoint = self._account.objects["webhook_endpoint"].get(endpoint_id)
        if endpoint is None:
            return 0
        payload = json.dumps(event | {"api_version": endpoint["api_version"]}, indent=2)
        result = await self._post(endpoint, payload, signature, None)
        status = int(result["status"])
        self.log.append(
            {"event": event["id"], "type": event["type"], "endpoint": endpoint_id, "attempt": attempt, "status": status}
        )
        if _accepted(status):
            self._account.mark_delivered(event, endpoint_id)
            self._save()
        return status

    async def _post(self, endpoint: Object, payload: str, signature: SignatureOptions, header: str | None) -> Object:
        secrets = [signature.secret] if signature.secret else self._account.secrets[endpoint["id"]]
        header = header or sign(payload, secrets=secrets, timestamp=int(time.time()) - signature.age_seconds)
        headers = {"Stripe-Signature": header, "Content-Type": "application/json; charset=utf-8"}
        timeout = aiohttp.ClientTimeout(total=float(self._account.settings["delivery_timeout_seconds"]))
        try:
            async with self._session.post(endpoint["url"], data=payload, headers=headers, timeout=timeout) as response:
                return {"status": response.status, "body": await response.text()}
        except (aiohttp.ClientError, TimeoutError) as error:
            return {"status": 0, "body": type(error).__name__}


def _signature_options(fault: Fault | None) -> SignatureOptions:
    return SignatureOptions(**fault.options) if fault and fault.kind == "missign" else _VALID_SIGNATURE


def _accepted(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
