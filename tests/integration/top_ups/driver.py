"""Drives top-ups: real PostgreSQL, Stripe's stand-in over HTTP, a webhook endpoint, and a clock that can be moved."""

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

from server.credits.ledger import adjust_credits
from server.credits.pricing import Pricing, load_pricing
from server.credits.stripe.client import Failpoint, StripeClient
from server.credits.stripe.inbox import StripeInbox
from server.credits.stripe.invoices import TaxRate
from server.credits.top_ups.automatic_service import AutomaticTopUps
from server.credits.top_ups.service import Purchase, TopUps
from server.credits.top_ups.state_machine import TopUp, TopUpStatus, TopUpTerms
from server.credits.top_ups.store import TopUpStore
from server.errors import PaymentProviderUnavailable, StripeEventInvalid
from server.jobs import collect_undelivered_events
from server.postgres.pool import Pool, acquire
from server.sandbox.stripe import StripeSandbox
from tests.waiting import SECONDS, until

API_KEY = "sk_test_sandbox"
SECRET = "whsec_sandbox"
ACME = "acme"
CALLS_PER_JOB = 16
TERMS = TopUpTerms(environment="test", livemode=False)
BAD_ANSWERS: list[tuple[str, dict[str, Any]]] = [
    ("rate_limit", {"times": 2}),
    ("rate_limit", {"times": 2, "should_retry": "true"}),
    ("lock_timeout", {"times": 1}),
    ("server_error", {"times": 1}),
    ("server_error", {"times": 0, "stored": True}),
    ("server_error", {"times": 1, "stored": True}),
    ("server_error", {"times": 1, "stored": True, "executes": True}),
    ("bad_gateway", {"times": 5}),
    ("bad_gateway", {"times": 5, "executes": True}),
    ("truncated", {"times": 2}),
    ("cut_off", {"times": 2}),
    ("drop_before", {"times": 5}),
    ("drop_after", {"times": 5}),
    ("refuse", {"times": 1, "type": "idempotency_error"}),
]
"""Faults of the stand-in, with their options, after which a call succeeds when it is made again."""


@dataclass(slots=True)
class Clock:
    """Real time plus `ahead`, which a test may change."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def purchase(organization_id: str = ACME, **changes: Any) -> Purchase:
    """1,000 credits, paid in rupiah, with a new request_id; `changes` replace fields."""
    contents = Purchase(organization_id, uuid4(), 1000, "IDR", "billing@example.com", "Acme")
    return replace(contents, **changes)


@dataclass(slots=True)
class Replica:
    """The objects of one server process; a restart makes new ones."""

    store: TopUpStore
    stripe_client: StripeClient
    top_ups: TopUps
    automatic: AutomaticTopUps
    inbox: StripeInbox

    async def close(self) -> None:
        await self.automatic.close()
        await self.top_ups.close()
        await self.inbox.close()
        await self.stripe_client.close()


@dataclass(slots=True)
class TopUpDriver:
    """Replicas over time, and what customers, Stripe and the periodic jobs do. The last replica is the current one."""

    sandbox: StripeSandbox
    pool: Pool
    session: aiohttp.ClientSession
    clock: Clock = field(default_factory=Clock)
    terms: TopUpTerms = TERMS
    pricing: Pricing = field(default_factory=lambda: load_pricing(None))
    secrets: tuple[str, ...] = (SECRET,)
    replicas: list[Replica] = field(default_factory=list)

    @property
    def replica(self) -> Replica:
        return self.replicas[-1]

    @property
    def top_ups(self) -> TopUps:
        return self.replica.top_ups

    @property
    def automatic(self) -> AutomaticTopUps:
        return self.replica.automatic

    @property
    def inbox(self) -> StripeInbox:
        return self.replica.inbox

    def start(self, *, failpoint: Failpoint | None = None, timeout_seconds: float = 2.0) -> Replica:
        """Start a replica, which becomes the current one; timeout_seconds is that of a Stripe call."""
        stripe_client = StripeClient(
            api_key=API_KEY, base_url=self.sandbox.url, timeout_seconds=timeout_seconds, failpoint=failpoint
        )
        store = TopUpStore(self.pool, self.terms, low_balance_threshold=100, clock=self.clock, failpoint=failpoint)
        inbox = StripeInbox(store, stripe_client, secrets=self.secrets)
        top_ups = TopUps(store, stripe_client, self.pricing)
        automatic = AutomaticTopUps(store, stripe_client, self.pricing, top_ups)
        self.replicas.append(Replica(store, stripe_client, top_ups, automatic, inbox))
        return self.replica

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()

    async def webhook(self, request: web.Request) -> web.Response:
        """Answer a webhook as the sidecar and the credit service do."""
        try:
            await self.inbox.record(await request.read(), request.headers.get("Stripe-Signature", ""))
        except StripeEventInvalid:
            return web.Response(status=400)
        return web.Response()

    async def buy(self, organization_id: str = ACME, *, wait_seconds: float = SECONDS, **changes: Any) -> TopUp:
        return await self.top_ups.create(
            purchase(organization_id, **changes), created_by="ann", wait_seconds=wait_seconds
        )

    async def cancel(self, top_up: TopUp, *, wait_seconds: float = SECONDS) -> TopUp:
        return await self.top_ups.cancel(top_up.organization_id, top_up.top_up_id, wait_seconds=wait_seconds)

    async def pay_hosted_invoice(self, top_up: TopUp) -> None:
        """Pay on the hosted invoice page, as the customer does."""
        async with self.session.post(f"{top_up.hosted_invoice_url}/pay", allow_redirects=False) as response:
            assert response.status == 303, await response.text()

    async def control(self, call: str, body: Any = None) -> Any:
        """The answer to one call of the stand-in's control API, `METHOD path`; the call must succeed."""
        method, path = call.split(" ")
        async with self.session.request(method, f"{self.sandbox.url}/_control{path}", json=body) as response:
            assert response.status < 300, await response.text()
            return json.loads(await response.text())

    async def invoice_action(self, top_up: TopUp, action: str, **options: Any) -> None:
        """Change the invoice at Stripe through the control API, without a call of the server."""
        await self.control(f"POST /invoices/{top_up.stripe_invoice_id}/{action}", options)

    async def inject_fault(self, match: str, kind: str, **options: Any) -> dict[str, Any]:
        """Let calls that match `METHOD path`, or events that match a type, fail in this way."""
        method, _, path = match.partition(" ")
        matched = {"method": method, "path": path} if path else {"event": method}
        fault: dict[str, Any] = await self.control("POST /faults", {"match": matched, "fault": kind, **options})
        return fault

    async def wait_until_held(self, fault: dict[str, Any]) -> None:
        """Return once a fault of kind hold_before or hold_after holds a call."""
        await self.control(f"GET /faults/{fault['id']}/met")

    async def invoices(self) -> list[dict[str, Any]]:
        return list((await self.control("GET /invoices"))["invoices"])

    async def run_jobs(self) -> None:
        """Run each periodic job about top-ups once."""
        with suppress(PaymentProviderUnavailable):
            await collect_undelivered_events(self.inbox, now=self.clock())
        await self.run_due()

    async def run_due(self) -> None:
        """Run the jobs once that ask nobody for events."""
        await self.inbox.process_due(now=self.clock(), limit=CALLS_PER_JOB)
        await self.automatic.order_due(now=self.clock(), limit=CALLS_PER_JOB)
        await self.top_ups.advance_due(now=self.clock(), limit=CALLS_PER_JOB)
        await self.automatic.detach_cards(limit=CALLS_PER_JOB)

    async def stored(self, top_up: TopUp) -> TopUp:
        """The top-up as stored, without asking Stripe."""
        found = await self.top_ups.list(top_up.organization_id, limit=100)
        return next(each for each in found if each.top_up_id == top_up.top_up_id)

    async def wait_for_status(self, top_up: TopUp, status: TopUpStatus) -> TopUp:
        """The top-up, once it has this status."""
        await until(lambda: self._is(top_up, status))
        return await self.stored(top_up)

    async def _is(self, top_up: TopUp, status: TopUpStatus) -> bool:
        return (await self.stored(top_up)).status is status

    async def query_value(self, query: str, *parameters: object) -> Any:
        """The first value that a query finds."""
        async with acquire(self.pool) as connection:
            row = await (await connection.execute(query.encode(), parameters)).fetchone()
            return row[0] if row else None

    async def credits(self, organization_id: str = ACME) -> int:
        query = "SELECT coalesce(sum(available_credits), 0)::bigint FROM accounts WHERE organization_id = %s"
        return int(await self.query_value(query, organization_id))

    async def adjust(self, credits: int, organization_id: str = ACME) -> int:
        """Change the balance; returns the balance right after it."""
        entry, _ = await adjust_credits(
            self.pool,
            organization_id,
            request_id=uuid4(),
            credits=credits,
            reason="test",
            created_by="test",
            low_balance_threshold=100,
            now=self.clock(),
        )
        return entry.balance_after

    async def event_statuses(self) -> set[str]:
        async with acquire(self.pool) as connection:
            cursor = await connection.execute("SELECT DISTINCT status FROM stripe_events")
            return {row[0] for row in await cursor.fetchall()}

    async def wait_for_events(self) -> None:
        """Return once every webhook is delivered and processed."""
        await until(self._are_events_done)

    async def _are_events_done(self) -> bool:
        listed = (await self.control("GET /events"))["events"]
        waiting = any(event["undelivered"] for event in listed)
        return not waiting and "RECEIVED" not in await self.event_statuses()


async def tax_rate(driver: TopUpDriver, *, inclusive: bool = False) -> TaxRate:
    """A tax of 11 %, made at Stripe."""
    values = {"display_name": "PPN", "percentage": "11", "inclusive": str(inclusive).lower()}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with driver.session.post(f"{driver.sandbox.url}/v1/tax_rates", data=values, headers=headers) as response:
        fields = json.loads(await response.text())
    return TaxRate(fields["id"], Decimal(11), inclusive)
