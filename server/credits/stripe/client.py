"""The client of Stripe's API.

Every call has a deadline, is retried only where that is safe, and raises the errors of credits/stripe/errors.py.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

import aiohttp
import stripe
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from server.credits.stripe.cards import Card, CardSetup, read_card, read_card_setup
from server.credits.stripe.errors import (
    TRANSPORT_ERRORS,
    StripeNotFound,
    StripeRefused,
    StripeUnavailable,
    explain,
)
from server.credits.stripe.invoices import (
    BalanceTransaction,
    CustomerBalance,
    Invoice,
    Parameters,
    read_balance_transaction,
    read_invoice,
    replay_balance,
    uses_balance,
)
from server.credits.stripe.webhooks import DISPUTED, EVENT_TYPES, StripeEvent, read_event
from server.traces import child_span

# With telemetry the SDK would measure its calls and write a file about them into the home directory.
stripe.enable_telemetry = False

Answer = TypeVar("Answer")
Failpoint = Callable[[str], Awaitable[None]]
"""Awaited with the name of a step once the step is done: after each Stripe call and each commit of a top-up.

Crash tests kill the server there; in production it is None.
"""
_RATE_LIMIT_ATTEMPTS = 4
_PAGE_SIZE = 100
OLDEST_API_VERSION = "2025-03-31"
"""Of the first version, "basil", whose invoices list their payments."""
_NO_SUCH = "pulsa_doctor"
"""The id of nothing: a call about it changes nothing, and is refused for a missing right before it is looked up."""


@dataclass(frozen=True, slots=True)
class StripeAccount:
    """The Stripe account of an API key, and the key's mode."""

    account_id: str
    livemode: bool


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """A webhook endpoint that is registered at Stripe."""

    endpoint_id: str
    url: str
    event_types: frozenset[str]
    enabled: bool

    @property
    def is_configured(self) -> bool:
        """True when the endpoint is enabled and subscribes to exactly EVENT_TYPES."""
        return self.enabled and self.event_types == frozenset(EVENT_TYPES)


class StripeClient:
    """Calls the API of one Stripe account, in one event loop.

    Every call may raise StripeUnavailable or StripeRefused. A call with a `key`, its idempotency key, may also raise
    IdempotencyKeySpent; a call about an existing object may also raise StripeNotFound.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None = None,
        api_version: str | None = None,
        timeout_seconds: float = 10.0,
        network_retries: int = 2,
        failpoint: Failpoint | None = None,
    ) -> None:
        """base_url and api_version default to Stripe's. A call, retries included, takes at most 3 * timeout_seconds."""
        self.api_version = api_version or stripe.api_version
        """The API version of Stripe's answers."""
        self.livemode = api_key.startswith(("sk_live_", "rk_live_"))
        self.deadline_seconds = 3 * timeout_seconds
        """The longest that a call takes, retries included."""
        self._failpoint = failpoint
        self._http = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=timeout_seconds))
        self._stripe = stripe.StripeClient(
            api_key,
            stripe_version=api_version,
            base_addresses={"api": base_url} if base_url else {},
            max_network_retries=network_retries,
            http_client=self._http,
        ).v1

    async def close(self) -> None:
        """Close the connections. No call may follow."""
        close: Callable[[], Awaitable[None]] = self._http.close_async
        await close()

    async def account(self) -> StripeAccount:
        """Retrieve the account that the API key belongs to."""
        fields = await self._call("account", self._stripe.accounts.retrieve_current_async)
        return StripeAccount(account_id=fields["id"], livemode=self.livemode)

    async def find_missing_rights(self) -> list[str]:
        """The rights that the API key lacks, in words. Calls everything that a top-up may need, and changes nothing."""
        stripe_v1, one = self._stripe, {"limit": 1}
        item = {"invoice": _NO_SUCH, "customer": _NO_SUCH}
        calls: Mapping[str, tuple[Callable[..., Awaitable[Any]], tuple[object, ...]]] = {
            "write customers": (stripe_v1.customers.update_async, (_NO_SUCH, {})),
            "read balance transactions": (stripe_v1.customers.balance_transactions.list_async, (_NO_SUCH, one)),
            "write tax ids": (stripe_v1.customers.tax_ids.delete_async, (_NO_SUCH, _NO_SUCH)),
            "read invoices": (stripe_v1.invoices.list_async, (one,)),
            "write invoices": (stripe_v1.invoices.void_invoice_async, (_NO_SUCH, {})),
            "write invoice items": (stripe_v1.invoice_items.create_async, (item,)),
            "write checkout sessions": (stripe_v1.checkout.sessions.expire_async, (_NO_SUCH,)),
            "read setup intents": (stripe_v1.setup_intents.retrieve_async, (_NO_SUCH,)),
            "write payment methods": (stripe_v1.payment_methods.detach_async, (_NO_SUCH,)),
            "read invoice payments": (stripe_v1.invoice_payments.list_async, (one,)),
            "read disputes": (stripe_v1.disputes.list_async, (one,)),
            "read events": (stripe_v1.events.list_async, (one,)),
            "read webhook endpoints": (stripe_v1.webhook_endpoints.list_async, (one,)),
        }
        missing = []
        for right, (call, arguments) in calls.items():
            try:
                await self._call("try right", call, *arguments)
            except (StripeNotFound, StripeRefused):
                continue
            except StripeUnavailable as error:
                if not error.reason.startswith("permission_missing"):
                    raise
                missing.append(right)
        return missing

    async def has_tax_rate(self, rate_id: str, *, percent: Decimal, inclusive: bool) -> bool:
        """Whether Stripe has this tax rate, and may use it."""
        try:
            fields = await self._call("tax_rate", self._stripe.tax_rates.retrieve_async, rate_id)
        except StripeNotFound:
            return False
        found = Decimal(str(fields["percentage"])), fields["inclusive"], fields["active"]
        return found == (percent, inclusive, True)

    async def create_customer(self, parameters: Parameters, *, key: str) -> str:
        """Create a customer; returns its id."""
        customers = self._stripe.customers
        fields = await self._call("create_customer", customers.create_async, parameters, _options(key))
        return str(fields["id"])

    async def update_customer(self, customer_id: str, parameters: Parameters) -> bool:
        """Set the customer's contact; returns whether the customer has a balance in any currency.

        Raises StripeNotFound also for a deleted customer.
        """
        values = {**parameters, "expand": ["invoice_credit_balance"]}
        fields = await self._call("update_customer", self._stripe.customers.update_async, customer_id, values)
        # The two fields have opposite signs; the sign is taken from the transactions only.
        return bool(fields.get("balance")) or any((fields.get("invoice_credit_balance") or {}).values())

    async def customer_balance(self, customer_id: str, currency_code: str) -> CustomerBalance:
        """Read the customer's balance in a currency, and how much of it was paid."""
        return replay_balance(await self._balance_transactions(customer_id), currency_code)

    async def set_tax_id(self, customer_id: str, tax_id: Parameters, *, key: str) -> None:
        """Make `tax_id`, with its `type` and `value`, the customer's only one."""
        tax_ids = self._stripe.customers.tax_ids

        async def list_page(values: Any) -> object:
            return await tax_ids.list_async(customer_id, values)

        found = [fields async for fields in self._pages("list_tax_ids", list_page, {})]
        for other in found:
            if (other["type"], other["value"]) != (tax_id["type"], tax_id["value"]):
                with suppress(StripeNotFound):  # the SDK repeats a DELETE whose answer is lost: the customer is there
                    await self._call("delete_tax_id", tax_ids.delete_async, customer_id, other["id"])
        if not any((each["type"], each["value"]) == (tax_id["type"], tax_id["value"]) for each in found):
            await self._call("create_tax_id", tax_ids.create_async, customer_id, tax_id, _options(key))

    async def create_invoice(self, parameters: Parameters, *, customer_id: str, key: str) -> Invoice:
        """Create a draft without lines."""
        values = {**parameters, "customer": customer_id}
        return await self._invoice("create_invoice", self._stripe.invoices.create_async, values, _options(key))

    async def create_item(self, parameters: Parameters, *, customer_id: str, invoice_id: str, key: str) -> None:
        """Add a line to a draft."""
        values = {**parameters, "customer": customer_id, "invoice": invoice_id}
        await self._call("create_item", self._stripe.invoice_items.create_async, values, _options(key))

    async def finalize(self, invoice_id: str, *, key: str) -> Invoice:
        """Finalize the draft: the invoice gets its number and becomes payable."""
        values = {"auto_advance": False, "expand": ["payments"]}
        finalize = self._stripe.invoices.finalize_invoice_async
        return await self._invoice("finalize", finalize, invoice_id, values, _options(key))

    async def pay(self, invoice_id: str, *, payment_method_id: str, key: str) -> Invoice:
        """Charge a saved card for an open invoice, without the customer.

        Raises StripeRefused when the card is declined, or needs the customer's authentication.
        """
        values = {"payment_method": payment_method_id, "off_session": True, "expand": ["payments"]}
        return await self._invoice("pay", self._stripe.invoices.pay_async, invoice_id, values, _options(key))

    async def void(self, invoice_id: str) -> Invoice:
        """Void the invoice, so that it can no longer be paid.

        Raises StripeRefused while a payment is pending, and for an invoice that cannot be voided. Sends no idempotency
        key: Stripe would repeat a refusal stored under it after the cause is gone.
        """
        values = {"expand": ["payments"]}
        return await self._invoice("void", self._stripe.invoices.void_invoice_async, invoice_id, values)

    async def delete_draft(self, invoice_id: str) -> None:
        """Delete the draft. Raises StripeRefused when the invoice is no longer a draft."""
        await self._call("delete_draft", self._stripe.invoices.delete_async, invoice_id)

    async def retrieve(self, invoice_id: str) -> Invoice:
        """Retrieve the invoice with its payments."""
        values = {"expand": ["payments"]}
        return await self._invoice("retrieve", self._stripe.invoices.retrieve_async, invoice_id, values)

    async def list_invoices(self, *, customer_id: str | None, since: datetime) -> list[Invoice]:
        """List the invoices created since then, of one customer or, with None, of all customers; newest first."""
        values = {"created": {"gte": int(since.timestamp())}, "expand": ["data.payments"]}
        if customer_id:
            values["customer"] = customer_id
        pages = self._pages("list_invoices", self._stripe.invoices.list_async, values)
        return [_read(read_invoice, fields) async for fields in pages]

    async def create_card_setup(self, parameters: Parameters, *, customer_id: str, key: str) -> CardSetup:
        """Create the page on which the customer saves a card."""
        values: Any = {**parameters, "customer": customer_id}
        create = self._stripe.checkout.sessions.create_async
        return _read(read_card_setup, await self._call("create_card_setup", create, values, _options(key)))

    async def retrieve_card_setup(self, session_id: str) -> CardSetup:
        """Retrieve a page, with the card if one was saved on it."""
        values = {"expand": ["setup_intent.payment_method"]}
        retrieve = self._stripe.checkout.sessions.retrieve_async
        return _read(read_card_setup, await self._call("retrieve_card_setup", retrieve, session_id, values))

    async def retrieve_card(self, payment_method_id: str) -> Card | None:
        """Retrieve a saved card; None when no customer has it any more."""
        retrieve = self._stripe.payment_methods.retrieve_async
        try:
            return _read(read_card, await self._call("retrieve_card", retrieve, payment_method_id))
        except StripeNotFound:
            return None

    async def detach_card(self, payment_method_id: str) -> None:
        """Remove the card from its customer. Raises StripeRefused when no customer has it."""
        await self._call("detach_card", self._stripe.payment_methods.detach_async, payment_method_id)

    async def is_disputed(self, payment_intent_id: str) -> bool:
        """Whether a dispute took the payment's money back, or may: an inquiry and a won dispute do not."""
        pages = self._pages("list_disputes", self._stripe.disputes.list_async, {"payment_intent": payment_intent_id})
        return any([fields["status"] in DISPUTED async for fields in pages])

    async def find_invoice_of_payment(self, payment_intent_id: str) -> str | None:
        """Find the id of the invoice that a payment intent paid; None when there is none."""
        values = {"payment": {"type": "payment_intent", "payment_intent": payment_intent_id}, "limit": 1}
        payments = self._stripe.invoice_payments
        fields = await self._call("find_invoice_of_payment", payments.list_async, values)
        return next((str(payment["invoice"]) for payment in fields["data"]), None)

    async def list_events(self, *, since: datetime, undelivered_only: bool) -> list[StripeEvent]:
        """List the events of EVENT_TYPES since then, newest first: all, or those that not every endpoint has received.

        Stripe keeps events for 30 days.
        """
        values: Parameters = {"types": list(EVENT_TYPES), "created": {"gte": int(since.timestamp())}}
        if undelivered_only:
            values["delivery_success"] = False
        pages = self._pages("list_events", self._stripe.events.list_async, values)
        return [_read(read_event, fields) async for fields in pages]

    async def retrieve_event(self, event_id: str) -> StripeEvent:
        """Retrieve an event. Stripe keeps events for 30 days."""
        fields = await self._call("retrieve_event", self._stripe.events.retrieve_async, event_id)
        return _read(read_event, fields)

    async def list_webhook_endpoints(self) -> list[WebhookEndpoint]:
        """List the account's endpoints in the mode of the API key."""
        pages = self._pages("list_webhook_endpoints", self._stripe.webhook_endpoints.list_async, {})
        return [_read(_read_endpoint, fields) async for fields in pages]

    async def create_webhook_endpoint(self, url: str) -> str:
        """Create an endpoint for EVENT_TYPES; returns its signing secret, which Stripe shows only once."""
        values = {"url": url, "enabled_events": list(EVENT_TYPES)}
        fields = await self._call("create_webhook_endpoint", self._stripe.webhook_endpoints.create_async, values)
        return str(fields["secret"])

    async def update_webhook_endpoint(self, endpoint_id: str) -> None:
        """Enable an endpoint and subscribe it to exactly EVENT_TYPES."""
        values = {"enabled_events": list(EVENT_TYPES), "disabled": False}
        update = self._stripe.webhook_endpoints.update_async
        await self._call("update_webhook_endpoint", update, endpoint_id, values)

    async def _invoice(self, name: str, call: Callable[..., Awaitable[Any]], *arguments: object) -> Invoice:
        """Make a call that answers an invoice, and read what the answer leaves out, which is rarely needed."""
        fields = await self._call(name, call, *arguments)
        if (fields.get("payments") or {}).get("has_more"):
            payments = self._stripe.invoice_payments
            pages = self._pages("list_payments", payments.list_async, {"invoice": fields["id"]})
            fields = {**fields, "payments": {"data": [payment async for payment in pages]}}
        uses = _read(uses_balance, fields)
        transactions = await self._balance_transactions(fields["customer"]) if uses else ()
        return _read(partial(read_invoice, transactions=transactions), fields)

    async def _balance_transactions(self, customer_id: str) -> list[BalanceTransaction]:
        """Every change of the customer's balance, oldest first."""

        async def list_page(values: Any) -> object:
            return await self._stripe.customers.balance_transactions.list_async(customer_id, values)

        pages = self._pages("list_balance_transactions", list_page, {})
        return [_read(read_balance_transaction, fields) async for fields in pages][::-1]

    async def _pages(
        self, name: str, call: Callable[..., Awaitable[Any]], values: Parameters
    ) -> AsyncIterator[Mapping[str, Any]]:
        values = {**values, "limit": _PAGE_SIZE}
        while True:
            page = await self._call(name, call, values)
            for fields in page["data"]:
                yield fields
            if not page["has_more"]:
                return
            values = {**values, "starting_after": page["data"][-1]["id"]}

    async def _call(self, name: str, call: Callable[..., Awaitable[Any]], *arguments: object) -> Mapping[str, Any]:
        """Make the call within the deadline; returns Stripe's answer as plain JSON."""
        try:
            with child_span(f"stripe {name}", {}):
                async with asyncio.timeout(self.deadline_seconds):
                    answer = await _retry_rate_limited(call, *arguments)
        except TRANSPORT_ERRORS as error:
            raise explain(error) from error
        if self._failpoint:
            await self._failpoint(f"stripe {name}")
        return _read(lambda stripe_object: stripe_object.to_dict(), answer)


async def _retry_rate_limited(call: Callable[..., Awaitable[Answer]], *arguments: object) -> Answer:
    """Make the call; retry it with growing pauses while Stripe answers 429, which the SDK does not retry."""
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
    """Apply `read` to Stripe's answer. Raises StripeUnavailable for an answer of an unexpected shape."""
    try:
        return read(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StripeUnavailable("unexpected_answer") from error


def _options(key: str) -> stripe.RequestOptions:
    return {"idempotency_key": key}


def _read_endpoint(fields: Mapping[str, Any]) -> WebhookEndpoint:
    return WebhookEndpoint(
        fields["id"], fields["url"], frozenset(fields["enabled_events"]), fields["status"] == "enabled"
    )
