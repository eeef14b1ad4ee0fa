"""Orders top-ups by themselves: after the commit of the send that crossed the threshold, and by a periodic job."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from server.credits.pricing import Pricing
from server.credits.stripe.cards import CardSetup
from server.credits.stripe.client import StripeClient
from server.credits.top_ups.automatic import (
    AutomaticTopUp,
    AutomaticTopUpState,
    Consent,
    accept_order,
    choose,
    is_due,
    switch_off,
)
from server.credits.top_ups.automatic_store import (
    insert_consent,
    read_automatic,
    read_consented_total,
    read_month_credits,
    read_state,
    refuse_over_cap,
    write_automatic,
)
from server.credits.top_ups.cards import CardSetupOrder, detach_cards, remove_saved_card, start_card_setup
from server.credits.top_ups.service import Purchase, TopUps, new_top_up
from server.credits.top_ups.state_machine import IN_WORK, TopUp
from server.credits.top_ups.store import TopUpStore, insert_top_up, set_contact
from server.errors import CurrencyNotSold, TopUpAboveMaximum, TopUpBelowMinimum
from server.ids import new_id
from server.logs import safe_traceback
from server.postgres.pool import Connection, acquire, retry_transient, transaction
from server.postgres.queries import load_queries
from server.postgres.workers import find_everywhere

SQL = load_queries(__file__)
_log = structlog.get_logger(__name__)

_OVERLAP = timedelta(minutes=1)
"""For changes that were committed late, or by a clock that is behind."""


@dataclass(frozen=True, slots=True)
class AutomaticTopUpView:
    """What a caller sees of an organization's automatic top-ups."""

    row: AutomaticTopUp
    state: AutomaticTopUpState
    month_credits: int
    """Bought by automatic top-ups in this calendar month (UTC)."""


class AutomaticTopUps:
    """The automatic top-ups of all organizations. A send costs them a look into a dictionary."""

    def __init__(self, store: TopUpStore, stripe_client: StripeClient, pricing: Pricing, top_ups: TopUps) -> None:
        self._store = store
        self._stripe = stripe_client
        self._pricing = pricing
        self._top_ups = top_ups
        self._tasks: set[asyncio.Task[bool]] = set()
        self._known_since = datetime.min.replace(tzinfo=UTC)
        self.thresholds: dict[str, int] = {}
        """By organization, as this process knows it: those whose automatic top-ups are enabled."""

    async def read(self, organization_id: str) -> AutomaticTopUpView:
        """What is stored now."""

        async def once() -> AutomaticTopUpView:
            async with acquire(self._store.pool) as connection:
                return await self._view(connection, organization_id)

        return await retry_transient(once)

    async def update(
        self, organization_id: str, chosen: AutomaticTopUp, fields: Collection[str], consent: Consent
    ) -> AutomaticTopUpView:
        """Set these fields to what `chosen` has; while enabled with the consent, which is kept.

        Orders at once if the balance calls for it. Raises what `choose` raises, and what Pricing.quote does.
        """

        async def once() -> AutomaticTopUpView:
            async with transaction(self._store.pool) as connection:
                _, unfinished, before = await self._store.lock_automatic(connection, organization_id)
                now = self._store.clock()
                changes = {name: getattr(chosen, name) for name in fields}
                after = choose(before, changes, consent, self._store.terms, now=now)
                if after.is_enabled:
                    quote = self._pricing.quote(credits=after.credits, currency_code=after.currency_code)
                    await insert_consent(connection, after, total=quote.total.amount, now=now)
                    await set_contact(connection, organization_id, email=after.billing_email, name=after.billing_name)
                await self._store.restart_automatic(connection, unfinished, before=before, after=after)
                return await self._view(connection, organization_id)

        view = await retry_transient(once)
        await self._store.failpoint("commit automatic settings")
        if view.row.is_enabled:
            self.thresholds[organization_id] = view.row.threshold_credits
            self._start(organization_id)
        else:
            self.thresholds.pop(organization_id, None)
        return view

    async def start_card_setup(self, order: CardSetupOrder) -> CardSetup:
        """Return Stripe's page for a card; see `start_card_setup` of `cards` for the errors."""
        return await start_card_setup(self._store, self._stripe, order)

    async def remove_card(self, organization_id: str) -> AutomaticTopUpView:
        """Remove the card and switch automatic top-ups off. A repeat changes nothing."""
        await remove_saved_card(self._store, organization_id)
        return await self.read(organization_id)

    def note_spending(self, organization_id: str, *, credits: int, balance_after: int) -> None:
        """Order in the background if a committed send has crossed the threshold."""
        if balance_after < self.thresholds.get(organization_id, 0) <= balance_after + credits:
            self._start(organization_id)

    async def order_due(self, *, now: datetime, limit: int) -> int:
        """Order for at most `limit` organizations whose balance calls for it; returns how many were ordered.

        The safety net: for a process that ended right after a send, and for everything else that lowers a balance.
        """
        async with acquire(self._store.pool) as connection:
            rows = await connection.execute(SQL.find_due_automatic, {"now": now, "limit": limit})
            due = [row[0] for row in await rows.fetchall()]
        results = await asyncio.gather(*map(self._order, due), return_exceptions=True)
        for organization_id, result in zip(due, results, strict=True):
            if isinstance(result, Exception):
                _log.error("no top-up was ordered", organization_id=organization_id, trace=safe_traceback(result))
        return sum(result is True for result in results)

    async def detach_cards(self, *, limit: int) -> int:
        """Detach cards at Stripe that are no longer used here; returns how many."""
        return await detach_cards(self._store, self._stripe, limit=limit)

    async def refresh(self, now: datetime) -> int:
        """Learn which thresholds have changed; returns 0, as a job that has nothing to tell."""
        found = await find_everywhere(self._store.pool, SQL.find_thresholds, {"since": self._known_since})
        self.thresholds = {**self.thresholds, **dict(found.rows)}
        self.thresholds = {key: threshold for key, threshold in self.thresholds.items() if threshold}
        if found.is_complete:
            self._known_since = now - _OVERLAP
        return 0

    async def close(self) -> None:
        """Wait for the orders that were begun."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, organization_id: str) -> None:
        task = asyncio.create_task(self._order(organization_id), name=f"automatic top-up of {organization_id}")
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # The periodic job orders instead.
            _log.error("no top-up was ordered", task=task.get_name(), trace=safe_traceback(error))

    async def _order(self, organization_id: str) -> bool:
        """Order a top-up if everything allows it, and begin its work; True when it was ordered."""
        top_up = await retry_transient(lambda: self._decide(organization_id))
        if top_up is None:
            return False
        await self._store.failpoint("commit automatic order")
        self._top_ups.start(top_up)
        return True

    async def _decide(self, organization_id: str) -> TopUp | None:
        """Insert the top-up to work on: a new one, or one that a new consent lets go on; None for none."""
        async with transaction(self._store.pool) as connection:
            account, unfinished, row = await self._store.lock_automatic(connection, organization_id)
            now = self._store.clock()
            if unfinished is not None:
                is_charged = unfinished.charge_time is not None and unfinished.charge_time <= now
                return unfinished if unfinished.status not in IN_WORK and is_charged else None
            if not is_due(row, account, now=now):
                return None
            if await refuse_over_cap(connection, row, row.credits, now=now):
                return None
            try:
                quote = self._pricing.quote(credits=row.credits, currency_code=row.currency_code)
            except (TopUpBelowMinimum, TopUpAboveMaximum, CurrencyNotSold):
                await write_automatic(connection, before=row, after=switch_off(row, "NOT_SOLD"), now=now)
                return None
            if quote.total.amount > await read_consented_total(connection, organization_id):
                await write_automatic(connection, before=row, after=switch_off(row, "PRICE_RAISED"), now=now)
                return None
            top_up_id = new_id(now)
            purchase = Purchase(
                organization_id,
                top_up_id,
                row.credits,
                row.currency_code,
                row.billing_email,
                row.billing_name,
                row.billing_address,
                row.tax_id,
            )
            top_up = new_top_up(
                purchase,
                quote,
                top_up_id,
                self._store.terms,
                created_by=row.consent_given_by,
                now=now,
                is_automatic=True,
            )
            await write_automatic(connection, before=row, after=accept_order(row, top_up_id), now=now)
            await insert_top_up(connection, top_up)
            return top_up

    async def _view(self, connection: Connection, organization_id: str) -> AutomaticTopUpView:
        now = self._store.clock()
        row = await read_automatic(connection, organization_id) or AutomaticTopUp(organization_id, now)
        month_credits = await read_month_credits(connection, organization_id, now=now)
        return AutomaticTopUpView(row, await read_state(connection, organization_id), month_credits)
