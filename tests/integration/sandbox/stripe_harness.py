"""The harness of the Stripe stand-in's tests: the real SDK's client, a webhook receiver, and the control API."""

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import stripe
from aiohttp import web

from server.sandbox.stripe import StripeSandbox

API_KEY = "sk_test_sandbox"
SECRET = "whsec_sandbox"
_TIMEOUT_SECONDS = 10


@dataclass(slots=True)
class Delivery:
    """One webhook as it was received."""

    body: str
    signature: str

    def event(self, secret: str = SECRET) -> stripe.Event:
        """The event, after the SDK has verified its signature."""
        event: stripe.Event = stripe.Webhook.construct_event(self.body, self.signature, secret)
        return event


@dataclass(slots=True)
class Receiver:
    """A webhook endpoint that records what it receives, and answers with the next of `statuses`, or 200."""

    url: str = ""
    deliveries: list[Delivery] = field(default_factory=list)
    statuses: deque[int] = field(default_factory=deque)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.Response:
        delivery = Delivery(await request.text(), request.headers["Stripe-Signature"])
        async with self.arrived:
            self.deliveries.append(delivery)
            self.arrived.notify_all()
        return web.Response(status=self.statuses.popleft() if self.statuses else 200)

    async def wait_for(self, *types: str) -> None:
        """Wait until as many events have arrived; they must have these types, in any order."""
        async with asyncio.timeout(_TIMEOUT_SECONDS), self.arrived:
            await self.arrived.wait_for(lambda: len(self.deliveries) >= len(types))
        assert sorted(self.types()) == sorted(types)

    def types(self) -> list[str]:
        return [json.loads(delivery.body)["type"] for delivery in self.deliveries]


@dataclass(frozen=True, slots=True)
class StripeHarness:
    """A stand-in, the receiver of its webhooks, and calls to it."""

    sandbox: StripeSandbox
    receiver: Receiver
    session: aiohttp.ClientSession

    def client(self, *, retries: int = 0, timeout_seconds: float = 5.0, api_key: str = API_KEY) -> stripe.StripeClient:
        """A client of the real SDK, with the stand-in as its API."""
        return stripe.StripeClient(
            api_key,
            base_addresses={"api": self.sandbox.url},
            max_network_retries=retries,
            http_client=stripe.AIOHTTPClient(timeout=timeout_seconds, session=self.session),
        )

    async def control(self, call: str, body: Any = None) -> Any:
        """Make one call of the control API, as `METHOD path`. Fails if it is not answered 200."""
        method, path = call.split(" ")
        async with self.session.request(method, f"{self.sandbox.url}/_control{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def fault(self, match: dict[str, str], kind: str, **options: Any) -> str:
        """Add a fault, and return its id."""
        fault = await self.control("POST /faults", {"match": match, "fault": kind, **options})
        return str(fault["id"])

    async def act(self, invoice: stripe.Invoice, action: str, **options: Any) -> Any:
        """Run an invoice action of the control API."""
        return await self.control(f"POST /invoices/{invoice.id}/{action}", options)

    async def calls(self, method: str, path: str) -> int:
        """The number of API calls with this method and path."""
        found = await self.control(f"GET /requests?method={method}&path={path}")
        return int(found["count"])

    async def draft(self, *, amount: int = 15_000_000, currency: str = "idr", customer: str = "") -> stripe.Invoice:
        """A draft with one item, as a top-up creates it."""
        client = self.client()
        customer = customer or (await client.v1.customers.create_async({"name": "Toko Maju"})).id
        invoice = await client.v1.invoices.create_async(
            {
                "customer": customer,
                "currency": currency,
                "collection_method": "send_invoice",
                "days_until_due": 7,
                "auto_advance": False,
                "pending_invoice_items_behavior": "exclude",
                "metadata": {"top_up_id": "top-up-1"},
            }
        )
        await client.v1.invoice_items.create_async(
            {"customer": customer, "invoice": invoice.id, "amount": amount, "description": "1,000 credits"}
        )
        return invoice

    async def open(self, *, amount: int = 15_000_000, currency: str = "idr", customer: str = "") -> stripe.Invoice:
        """An open invoice."""
        draft = await self.draft(amount=amount, currency=currency, customer=customer)
        return await self.client().v1.invoices.finalize_invoice_async(draft.id, {"auto_advance": False})

    async def fetch(self, invoice: stripe.Invoice, expand: Sequence[str] = ("payments",)) -> stripe.Invoice:
        """The current state of the invoice."""
        return await self.client().v1.invoices.retrieve_async(invoice.id, {"expand": list(expand)})

    async def card_page(self, customer: str) -> stripe.checkout.Session:
        """A page on which the customer may save a card."""
        parameters: Any = {
            "mode": "setup",
            "customer": customer,
            "allowed_payment_method_types": ["card"],
            "success_url": f"{self.sandbox.url}/?saved",
            "cancel_url": f"{self.sandbox.url}/",
            "metadata": {"organization_id": "acme"},
            "setup_intent_data": {"metadata": {"organization_id": "acme"}},
        }
        return await self.client().v1.checkout.sessions.create_async(parameters)

    async def save_card(self, session: stripe.checkout.Session, behaviour: str = "works") -> str:
        """Save a card on the page, as the customer does; returns its id."""
        async with self.session.post(f"{session.url}/{behaviour}", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, session.success_url)
        done = await self.client().v1.checkout.sessions.retrieve_async(
            session.id, {"expand": ["setup_intent.payment_method"]}
        )
        return str(done.to_dict()["setup_intent"]["payment_method"]["id"])
