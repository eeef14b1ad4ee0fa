"""The calls to Stripe that top-ups need: bounded in time, repeated only where that is safe, errors in our own words."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import aiohttp
import stripe
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from server.payments.failures import TRANSPORT_ERRORS, Unavailable, explain
from server.payments.invoices import Invoice, read_invoice
from server.payments.orders import Parameters
from server.payments.webhooks import EVENT_TYPES, StripeEvent, read_event
from server.stops import Reached, go_on

# Otherwise the SDK measures its calls and keeps a file about them in the home directory.
stripe.enable_telemetry = False

Answer = TypeVar("Answer")
_RATE_LIMIT_ATTEMPTS = 4
_PAGE = 100


@dataclass(frozen=True, slots=True)
class StripeAccount:
    """Whose API key it is."""

    account_id: str
    livemode: bool


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """An address that Stripe sends events to."""

    endpoint_id: str
    url: str
    event_types: frozenset[str]
    enabled: bool

    @property
    def is_right(self) -> bool:
        """It gets exactly the events that are needed."""
        return self.enabled and self.event_types == frozenset(EVENT_TYPES)


class Payments:
    """One Stripe account. Lives in one event loop.

    Every call raises Unavailable or Refused; those that take a `key` (an idempotency key) may also raise KeySpent,
    those about an existing object NotFound.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None = None,
        api_version: str | None = None,
        timeout_seconds: float = 10.0,
        network_retries: int = 2,
        reached: Reached = go_on,
    ) -> None:
        """base_url and api_version are Stripe's own when None. A whole call takes at most 3 timeouts."""
        self.api_version = api_version or stripe.api_version
        """What the answers are written in."""
        self.livemode = api_key.startswith(("sk_live_", "rk_live_"))
        self.deadline_seconds = 3 * timeout_seconds
        """The longest that a call takes, repeats included."""
        self._reached = reached
        self._http = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=timeout_seconds))
        self._stripe = stripe.StripeClient(
            api_key,
            stripe_version=api_version,
            base_addresses={"api": base_url} if base_url else {},
            max_network_retries=network_retries,
            http_client=self._http,
        ).v1

    async def close(self) -> None:
        """Let go of connections; no call is made again."""
        close: Callable[[], Awaitable[None]] = self._http.close_async
        await close()

    async def account(self) -> StripeAccount:
        """The account that the API key belongs to."""
        fields = await self._call("account", self._stripe.accounts.retrieve_current_async)
        return StripeAccount(account_id=fields["id"], livemode=self.livemode)

    async def create_customer(self, parameters: Parameters, *, key: str) -> str:
        """The id of a new customer."""
        customers = self._stripe.customers
        fields = await self._call("create_customer", customers.create_async, parameters, _options(key))
        return str(fields["id"])

    async def update_customer(self, customer_id: str, parameters: Parameters) -> None:
        """Make the customer's contact what the parameters say. NotFound also for a deleted customer."""
        customers = self._stripe.customers
        await self._call("update_customer", customers.update_async, customer_id, parameters)

    async def create_invoice(self, parameters: Parameters, *, customer_id: str, key: str) -> Invoice:
        """A draft without lines."""
        given = {**parameters, "customer": customer_id}
        return await self._invoice("create_invoice", self._stripe.invoices.create_async, given, _options(key))

    async def create_item(self, parameters: Parameters, *, customer_id: str, invoice_id: str, key: str) -> None:
        """Add the line to a draft."""
        given = {**parameters, "customer": customer_id, "invoice": invoice_id}
        await self._call("create_item", self._stripe.invoice_items.create_async, given, _options(key))

    async def finalize(self, invoice_id: str, *, key: str) -> Invoice:
        """The invoice, now numbered and payable."""
        given = {"auto_advance": False, "expand": ["payments"]}
        finalize = self._stripe.invoices.finalize_invoice_async
        return await self._invoice("finalize", finalize, invoice_id, given, _options(key))

    async def void(self, invoice_id: str) -> Invoice:
        """The invoice, which nobody can pay any more. Refused while a payment is pending, or when it can't be voided.

        Without a key of ours: a refusal stored under one would outlive its cause.
        """
        given = {"expand": ["payments"]}
        return await self._invoice("void", self._stripe.invoices.void_invoice_async, invoice_id, given)

    async def delete_draft(self, invoice_id: str) -> None:
        """The draft is gone. Refused when it is a draft no longer."""
        await self._call("delete_draft", self._stripe.invoices.delete_async, invoice_id)

    async def retrieve(self, invoice_id: str) -> Invoice:
        """The invoice as it is now, with what was paid."""
        given = {"expand": ["payments"]}
        return await self._invoice("retrieve", self._stripe.invoices.retrieve_async, invoice_id, given)

    async def list_invoices(self, *, customer_id: str | None, since: datetime) -> list[Invoice]:
        """A customer's invoices, or everybody's, created since then, newest first."""
        given = {"created": {"gte": int(since.timestamp())}, "expand": ["data.payments"]}
        if customer_id:
            given["customer"] = customer_id
        pages = self._pages("list_invoices", self._stripe.invoices.list_async, given)
        return [_read(read_invoice, fields) async for fields in pages]

    async def find_invoice_of_payment(self, payment_intent_id: str) -> str | None:
        """The id of the invoice that a payment was for."""
        given = {"payment": {"type": "payment_intent", "payment_intent": payment_intent_id}, "limit": 1}
        payments = self._stripe.invoice_payments
        fields = await self._call("find_invoice_of_payment", payments.list_async, given)
        return next((str(payment["invoice"]) for payment in fields["data"]), None)

    async def list_undelivered_events(self, *, since: datetime) -> list[StripeEvent]:
        """Events of the types we subscribe to that an endpoint has not taken yet, newest first."""
        given = {
            "types": list(EVENT_TYPES),
            "delivery_success": False,
            "created": {"gte": int(since.timestamp())},
        }
        pages = self._pages("list_events", self._stripe.events.list_async, given)
        return [_read(read_event, fields) async for fields in pages]

    async def retrieve_event(self, event_id: str) -> StripeEvent:
        """One event of the last 30 days."""
        fields = await self._call("retrieve_event", self._stripe.events.retrieve_async, event_id)
        return _read(read_event, fields)

    async def list_webhook_endpoints(self) -> list[WebhookEndpoint]:
        """Every endpoint of the account in this mode."""
        pages = self._pages("list_webhook_endpoints", self._stripe.webhook_endpoints.list_async, {})
        return [_read(_read_endpoint, fields) async for fields in pages]

    async def create_webhook_endpoint(self, url: str) -> str:
        """A new endpoint with exactly the needed events; its signing secret, which Stripe shows only now."""
        given = {"url": url, "enabled_events": list(EVENT_TYPES)}
        fields = await self._call("create_webhook_endpoint", self._stripe.webhook_endpoints.create_async, given)
        return str(fields["secret"])

    async def update_webhook_endpoint(self, endpoint_id: str) -> None:
        """Let an endpoint get exactly the needed events."""
        given = {"enabled_events": list(EVENT_TYPES), "disabled": False}
        update = self._stripe.webhook_endpoints.update_async
        await self._call("update_webhook_endpoint", update, endpoint_id, given)

    async def _invoice(self, name: str, call: Callable[..., Awaitable[Any]], *arguments: object) -> Invoice:
        return _read(read_invoice, await self._call(name, call, *arguments))

    async def _pages(
        self, name: str, call: Callable[..., Awaitable[Any]], given: Parameters
    ) -> AsyncIterator[Mapping[str, Any]]:
        given = {**given, "limit": _PAGE}
        while True:
            page = await self._call(name, call, given)
            for fields in page["data"]:
                yield fields
            if not page["has_more"]:
                return
            given = {**given, "starting_after": page["data"][-1]["id"]}

    async def _call(self, name: str, call: Callable[..., Awaitable[Any]], *arguments: object) -> Mapping[str, Any]:
        """Stripe's answer as plain JSON."""
        try:
            async with asyncio.timeout(self.deadline_seconds):
                answer = await _repeat_rate_limited(call, *arguments)
        except TRANSPORT_ERRORS as error:
            raise explain(error) from error
        await self._reached(f"stripe {name}")
        return _read(lambda given: given.to_dict(), answer)


async def _repeat_rate_limited(call: Callable[..., Awaitable[Answer]], *arguments: object) -> Answer:
    """Make the call again, with growing pauses, while Stripe answers 429: the SDK itself does not."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(stripe.RateLimitError),
        stop=stop_after_attempt(_RATE_LIMIT_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.25, max=4),
        reraise=True,
    ):
        with attempt:
            return await call(*arguments)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _read(read: Callable[[Any], Answer], answer: object) -> Answer:
    """What was read from an answer. An answer of another shape is no answer: Unavailable."""
    try:
        return read(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unavailable("the answer had another shape") from error


def _options(key: str) -> stripe.RequestOptions:
    return {"idempotency_key": key}


def _read_endpoint(fields: Mapping[str, Any]) -> WebhookEndpoint:
    return WebhookEndpoint(
        fields["id"], fields["url"], frozenset(fields["enabled_events"]), fields["status"] == "enabled"
    )
