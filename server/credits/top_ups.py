"""Top-ups as callers see them: buy, look, cancel."""

import asyncio
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from server.credits.pricing import Pricing, Quote
from server.credits.top_up_changes import TopUpChanges
from server.credits.top_up_rows import (
    NEWEST,
    TopUp,
    find_by_request_id,
    find_due_top_ups,
    find_unfinished,
    insert_top_up,
    list_top_ups,
)
from server.credits.top_up_settlement import cancel
from server.credits.top_up_states import IN_WORK, TopUpStatus
from server.credits.top_up_worker import TopUpWorker
from server.database.pool import Connection, connection, repeat_transient, transaction
from server.database.queries import load_queries
from server.errors import RequestIdReused, TopUpAlreadyOpen, TopUpNotCancelable
from server.ids import new_id
from server.payments.client import Payments
from server.payments.failures import PaymentsError
from server.payments.orders import Order, freeze

SQL = load_queries(__file__)
log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.05
_LINKS_KEPT = timedelta(minutes=1)
_LINKS_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Purchase:
    """What a caller orders. The same request_id is the same purchase, and may not come with other contents."""

    organization_id: str
    request_id: UUID
    credits: int
    currency_code: str
    billing_email: str
    billing_name: str
    """Empty for the organization_id."""

    def fingerprint(self) -> bytes:
        """Equal for equal contents."""
        contents = [self.credits, self.currency_code, self.billing_email, self.billing_name]
        return hashlib.sha256(json.dumps(contents).encode()).digest()


class TopUps:
    """Purchases of credits. The work on them outlives the calls that wait for it."""

    def __init__(self, changes: TopUpChanges, payments: Payments, pricing: Pricing) -> None:
        self._changes = changes
        self._payments = payments
        self._pricing = pricing
        self._worker = TopUpWorker(changes, payments)
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, purchase: Purchase, *, created_by: str, wait_seconds: float) -> TopUp:
        """Order credits; the top-up as it is once Stripe has answered or wait_seconds have passed (then CREATING).

        Repeating it, with the same request_id, gives the same top-up. Cancelling it stops only the waiting.
        Raises TopUpBelowMinimum, TopUpAboveMaximum, CurrencyNotSold, TopUpAlreadyOpen, RequestIdReused.
        """

        async def once() -> TopUp:
            async with transaction(self._changes.pool) as connection:
                return await self._record(connection, purchase, created_by=created_by)

        top_up = await repeat_transient(once)
        await self._changes.reached("commit create")
        return await self._finish(top_up, wait_seconds=wait_seconds)

    async def get(self, organization_id: str, top_up_id: UUID) -> TopUp:
        """The top-up, its links at most a minute old unless Stripe is out of reach. Raises TopUpNotFound."""
        top_up = await self._changes.read(organization_id, top_up_id)
        oldest = self._changes.clock() - _LINKS_KEPT
        if top_up.stripe_invoice_id is None or top_up.links_fetch_time is None or top_up.links_fetch_time > oldest:
            return top_up
        try:
            async with asyncio.timeout(_LINKS_SECONDS):
                invoice = await self._payments.retrieve(top_up.stripe_invoice_id)
        except (PaymentsError, TimeoutError) as error:
            log.warning("stored invoice links are shown", top_up_id=str(top_up_id), why=type(error).__name__)
            return top_up
        # The answer says more than the links: a payment whose webhook is late is credited here.
        return await self._changes.settle(organization_id, top_up_id, invoice)

    async def list(
        self,
        organization_id: str,
        *,
        statuses: Collection[TopUpStatus] = (),
        before: UUID | None = None,
        limit: int,
    ) -> list[TopUp]:
        """At most `limit` top-ups, newest first, from the one before `before`; in any state when statuses is empty."""
        async with connection(self._changes.pool) as lent:
            return await list_top_ups(
                lent, organization_id, statuses=statuses or TopUpStatus, before=before or NEWEST, limit=limit
            )

    async def cancel(self, organization_id: str, top_up_id: UUID, *, wait_seconds: float) -> TopUp:
        """Void the unpaid invoice; the top-up as it is once that is done, or CANCELING after wait_seconds.

        A payment that came first wins: PAID. Repeating it does no harm. Raises TopUpNotFound, TopUpNotCancelable.
        """

        def edit(row: TopUp) -> TopUp:
            if row.status in {TopUpStatus.CANCELED, TopUpStatus.CANCELING}:
                return row
            if row.status not in {TopUpStatus.CREATING, TopUpStatus.OPEN}:
                raise TopUpNotCancelable(status=row.status.value)
            return replace(cancel(row, TopUpStatus.CANCELED), next_check_time=self._changes.clock())

        top_up = await self._changes.change(organization_id, top_up_id, edit, point="cancel")
        return await self._finish(top_up, wait_seconds=wait_seconds)

    async def advance_due(self, *, now: datetime, limit: int) -> int:
        """Go on with top-ups that a crash or an outage left, and look up unpaid ones; how many were due."""
        async with connection(self._changes.pool) as lent:
            due = await find_due_top_ups(lent, now=now, limit=limit)
        results = await asyncio.gather(*(self._worker.advance(*each) for each in due), return_exceptions=True)
        for (_, top_up_id), result in zip(due, results, strict=True):
            if isinstance(result, Exception):
                log.error("top-up was not advanced", top_up_id=str(top_up_id), exc_info=result)
        return len(due)

    async def close(self) -> None:
        """Wait for the work that is under way; each step is short, and what is not begun is left to a later run."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _record(self, connection: Connection, purchase: Purchase, *, created_by: str) -> TopUp:
        # The account's lock makes this exact; the unique constraints are the last judges.
        await self._changes.lock_account(connection, purchase.organization_id)
        earlier = await find_by_request_id(connection, purchase.organization_id, purchase.request_id)
        if earlier is not None:
            if earlier.request_fingerprint != purchase.fingerprint():
                raise RequestIdReused
            return earlier
        quote = self._pricing.quote(credits=purchase.credits, currency_code=purchase.currency_code)
        unfinished = await find_unfinished(connection, purchase.organization_id)
        if unfinished is not None:
            raise TopUpAlreadyOpen(
                top_up_id=str(unfinished.top_up_id), hosted_invoice_url=unfinished.hosted_invoice_url
            )
        top_up = self._new(purchase, quote, created_by=created_by)
        await insert_top_up(connection, top_up)
        await connection.execute(
            SQL.remember_alert_email,
            {"organization_id": purchase.organization_id, "alert_email": purchase.billing_email},
        )
        return top_up

    def _new(self, purchase: Purchase, quote: Quote, *, created_by: str) -> TopUp:
        now, top_up_id, terms = self._changes.clock(), new_id(), self._changes.terms
        order = Order(
            environment=terms.environment,
            organization_id=purchase.organization_id,
            top_up_id=top_up_id,
            credits=quote.credits,
            currency_code=purchase.currency_code,
            unit_price=quote.unit_price.amount,
            total=quote.total.amount,
            billing_email=purchase.billing_email,
            billing_name=purchase.billing_name,
            days_until_due=terms.days_until_due,
            payment_method_types=terms.payment_method_types.get(purchase.currency_code, ()),
        )
        return TopUp(
            organization_id=purchase.organization_id,
            top_up_id=top_up_id,
            status=TopUpStatus.CREATING,
            end_status=None,
            failure_reason="",
            flags=(),
            request_id=purchase.request_id,
            request_fingerprint=purchase.fingerprint(),
            credits=quote.credits,
            currency_code=purchase.currency_code,
            unit_price=quote.unit_price.amount,
            total=quote.total.amount,
            created_by=created_by,
            create_time=now,
            stripe_parameters=freeze(order),
            attempt=1,
            attempt_time=now,
            next_check_time=now,
        )

    async def _finish(self, top_up: TopUp, *, wait_seconds: float) -> TopUp:
        """The top-up after the work on it, which goes on in a task of its own if it takes longer than the wait."""
        if top_up.status not in IN_WORK:
            return top_up
        task = asyncio.create_task(self._work(top_up), name=f"top-up {top_up.top_up_id}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait({task}, timeout=wait_seconds)
        return await self._changes.read(top_up.organization_id, top_up.top_up_id)

    async def _work(self, top_up: TopUp) -> None:
        """Advance it, or wait while somebody else does."""
        while await self._worker.advance(top_up.organization_id, top_up.top_up_id) is None:
            current = await self._changes.read(top_up.organization_id, top_up.top_up_id)
            if current.status not in IN_WORK or current.lease_expire_time is None:
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # The lease runs out, and the night watch goes on from there.
            log.error("work on a top-up broke off", task=task.get_name(), exc_info=error)
