"""The room of top-ups between a real PostgreSQL and the Stripe stand-in over HTTP, with a small webhook door."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

from server.credits.pricing import load_pricing
from server.credits.stripe_events import StripeInbox
from server.credits.top_up_changes import TopUpChanges
from server.credits.top_up_rows import TopUp
from server.credits.top_up_settlement import TopUpTerms
from server.credits.top_up_states import TopUpStatus
from server.credits.top_ups import Purchase, TopUps
from server.database.pool import Pool, connection
from server.errors import StripeEventInvalid
from server.payments.client import Payments
from server.sandbox.stripe import StripeSandbox
from server.stops import Reached, go_on
from server.watch.stripe_events import watch_stripe_events, watch_undelivered_events
from server.watch.top_ups import watch_top_ups

API_KEY = "sk_test_sandbox"
SECRET = "whsec_sandbox"
ACME = "acme"
PATIENCE_SECONDS = 60
"""Never waited for unless something is wrong, also on a machine with much else to do."""
TERMS = TopUpTerms(environment="test", livemode=False)


@dataclass(slots=True)
class Clock:
    """Real time, moved ahead by what a test asks for."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def purchase(organization_id: str = ACME, **changes: Any) -> Purchase:
    """1,000 credits for rupiah, with a request_id of its own."""
    contents = Purchase(organization_id, uuid4(), 1000, "IDR", "billing@example.com", "Acme")
    return replace(contents, **changes)


@dataclass(slots=True)
class Desk:
    """One server process's objects; a restart makes others."""

    payments: Payments
    top_ups: TopUps
    inbox: StripeInbox

    async def close(self) -> None:
        await self.top_ups.close()
        await self.inbox.close()
        await self.payments.close()


@dataclass(slots=True)
class Shop:
    """What a test acts through and looks at."""

    sandbox: StripeSandbox
    pool: Pool
    session: aiohttp.ClientSession
    clock: Clock = field(default_factory=Clock)
    terms: TopUpTerms = TERMS
    secrets: tuple[str, ...] = (SECRET,)
    desks: list[Desk] = field(default_factory=list)

    @property
    def desk(self) -> Desk:
        return self.desks[-1]

    @property
    def top_ups(self) -> TopUps:
        return self.desk.top_ups

    @property
    def inbox(self) -> StripeInbox:
        return self.desk.inbox

    def start(self, *, reached: Reached = go_on, timeout_seconds: float = 2.0) -> Desk:
        """As a server process that starts."""
        payments = Payments(
            api_key=API_KEY, base_url=self.sandbox.url, timeout_seconds=timeout_seconds, reached=reached
        )
        changes = TopUpChanges(self.pool, self.terms, low_balance_threshold=100, clock=self.clock, reached=reached)
        inbox = StripeInbox(changes, payments, secrets=self.secrets)
        self.desks.append(Desk(payments, TopUps(changes, payments, load_pricing(None)), inbox))
        return self.desk

    async def close(self) -> None:
        for desk in self.desks:
            await desk.close()

    async def webhook(self, request: web.Request) -> web.Response:
        """What the sidecar and the front door do with a webhook."""
        try:
            await self.inbox.record(await request.read(), request.headers.get("Stripe-Signature", ""))
        except StripeEventInvalid:
            return web.Response(status=400)
        return web.Response()

    async def buy(
        self, organization_id: str = ACME, *, wait_seconds: float = PATIENCE_SECONDS, **changes: Any
    ) -> TopUp:
        return await self.top_ups.create(
            purchase(organization_id, **changes), created_by="ann", wait_seconds=wait_seconds
        )

    async def cancel(self, top_up: TopUp, *, wait_seconds: float = PATIENCE_SECONDS) -> TopUp:
        return await self.top_ups.cancel(top_up.organization_id, top_up.top_up_id, wait_seconds=wait_seconds)

    async def press_pay(self, top_up: TopUp) -> None:
        """What the customer does on the hosted invoice page."""
        async with self.session.post(f"{top_up.hosted_invoice_url}/pay", allow_redirects=False) as response:
            assert response.status == 303, await response.text()

    async def control(self, call: str, body: Any = None) -> Any:
        """One call of the stand-in's control API, as `METHOD path`; its answer must be good."""
        method, path = call.split(" ")
        async with self.session.request(method, f"{self.sandbox.url}/_control{path}", json=body) as response:
            assert response.status < 300, await response.text()
            return json.loads(await response.text())

    async def act(self, top_up: TopUp, action: str, **options: Any) -> None:
        """An invoice action of the control API: what happens at Stripe without a call of ours."""
        await self.control(f"POST /invoices/{top_up.stripe_invoice_id}/{action}", options)

    async def fault(self, match: str, kind: str, **options: Any) -> dict[str, Any]:
        """Let calls that match `METHOD path`, or events that match a type, go wrong."""
        method, _, path = match.partition(" ")
        matched = {"method": method, "path": path} if path else {"event": method}
        fault: dict[str, Any] = await self.control("POST /faults", {"match": matched, "fault": kind, **options})
        return fault

    async def invoices(self) -> list[dict[str, Any]]:
        return list((await self.control("GET /invoices"))["invoices"])

    async def watch(self) -> None:
        """One round of everything that the night watch does about top-ups."""
        await watch_undelivered_events(self.inbox, now=self.clock())
        await watch_stripe_events(self.inbox, now=self.clock())
        await watch_top_ups(self.top_ups, now=self.clock())

    async def read(self, top_up: TopUp) -> TopUp:
        """The top-up as stored, without asking Stripe."""
        found = await self.top_ups.list(top_up.organization_id, limit=100)
        return next(each for each in found if each.top_up_id == top_up.top_up_id)

    async def becomes(self, top_up: TopUp, status: TopUpStatus) -> TopUp:
        """The top-up once it is in this state."""
        await until(lambda: self._is(top_up, status))
        return await self.read(top_up)

    async def _is(self, top_up: TopUp, status: TopUpStatus) -> bool:
        return (await self.read(top_up)).status is status

    async def value(self, query: str, *parameters: object) -> Any:
        """The first value that a query finds."""
        async with connection(self.pool) as lent:
            row = await (await lent.execute(query.encode(), parameters)).fetchone()
            return row[0] if row else None

    async def credits(self, organization_id: str = ACME) -> int:
        query = "SELECT coalesce(sum(available_credits), 0)::bigint FROM accounts WHERE organization_id = %s"
        return int(await self.value(query, organization_id))

    async def event_statuses(self) -> set[str]:
        async with connection(self.pool) as lent:
            cursor = await lent.execute("SELECT DISTINCT status FROM stripe_events")
            return {row[0] for row in await cursor.fetchall()}

    async def all_events_done(self) -> None:
        """Once every webhook is delivered and processed."""
        await until(self._are_events_done)

    async def _are_events_done(self) -> bool:
        listed = (await self.control("GET /events"))["events"]
        waiting = any(event["undelivered"] for event in listed)
        return not waiting and "RECEIVED" not in await self.event_statuses()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return once it holds; fail when it never does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await holds():  # noqa: ASYNC110 - what is waited for lies in another system
            await asyncio.sleep(0.01)
