"""The inbox of Stripe's events.

An event is stored before its webhook is answered, then processed with retries until it is DONE or, after too many
attempts, DEAD. An event of another mode or account is stored as REJECTED and never processed.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from prometheus_client import Counter

from server.credits.stripe.client import StripeClient
from server.credits.stripe.errors import StripeCallError, StripeNotFound
from server.credits.stripe.invoices import Invoice
from server.credits.stripe.webhooks import EVENT_TYPES, StripeEvent, parse_event, verify
from server.credits.top_ups.cards import follow_card, save_card
from server.credits.top_ups.state_machine import TopUpFlag, owner_of
from server.credits.top_ups.store import TopUpStore
from server.errors import TopUpNotFound
from server.logs import safe_traceback
from server.postgres.pool import Pool, acquire, retry_transient
from server.postgres.queries import load_queries

SQL = load_queries(__file__)
_log = structlog.get_logger(__name__)

EVENTS = Counter("pulsa_stripe_events", "Stripe's events by their outcome on this replica.", ["outcome"])
for _outcome in ("received", "duplicate", "rejected", "done", "dead"):
    EVENTS.labels(_outcome)  # begins at zero, so that the first of them is an increase

FLAGS = {
    "charge.refunded": TopUpFlag.REFUNDED,
    "refund.created": TopUpFlag.REFUNDED,
    "credit_note.created": TopUpFlag.CREDIT_NOTE,
    "invoice.overpaid": TopUpFlag.OVERPAID,
}
"""The flag that an event of this type sets, because the invoice itself does not show it; a dispute's is looked up."""

_MAXIMUM_TASKS = 32
"""Events processed at once in the background. A periodic job picks up further ones within a second."""
_MAXIMUM_ATTEMPTS = 16
_SHORTEST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=30), timedelta(hours=1)
_UNDELIVERED_SINCE = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """The answer to a webhook."""

    event_id: str
    duplicate: bool
    """True when the event was already stored."""


class StripeInbox:
    """Stores each event of one Stripe account once and processes it until it is DONE or DEAD."""

    def __init__(
        self,
        store: TopUpStore,
        stripe_client: StripeClient,
        *,
        secrets: Sequence[str],
        account_id: str | None = None,
    ) -> None:
        """`secrets` are the webhook endpoint's signing secrets, several while one is replaced.

        Events that name an account other than account_id are REJECTED.
        """
        self._store = store
        self._stripe = stripe_client
        self._secrets = tuple(secrets)
        self._account_id = account_id
        self._tasks: set[asyncio.Task[bool]] = set()

    async def record(self, payload: bytes, signature: str) -> RecordedEvent:
        """Verify and store a webhook's event, then process it in the background.

        The event is committed when this returns. Raises StripeEventInvalid, and stores nothing, for a payload that
        Stripe did not sign.
        """
        event = verify(payload, signature, secrets=self._secrets, now=self._store.clock())
        expected = self._is_expected(event)
        new = await retry_transient(lambda: self._insert(event, status="RECEIVED" if expected else "REJECTED"))
        if not expected:
            _log.error("a signed event is not of this account and mode", event_id=event.event_id, type=event.type)
        EVENTS.labels(outcome="duplicate" if not new else "received" if expected else "rejected").inc()
        if new and expected:
            self._start(event.event_id)
        return RecordedEvent(event.event_id, duplicate=not new)

    async def collect_undelivered(self, *, now: datetime) -> int:
        """Store the events of the last three days that no webhook delivered; returns how many are new.

        Raises StripeCallError.
        """
        return await self._collect(since=now - _UNDELIVERED_SINCE, undelivered_only=True)

    async def process_again(self, *, since: datetime) -> int:
        """Process Stripe's events since then as if no webhook had delivered them; returns how many were missing here.

        Those that wait for Stripe are left to the periodic job. Raises StripeCallError.
        """
        count = await self._collect(since=since, undelivered_only=False)
        while await self.process_due(now=self._store.clock(), limit=_MAXIMUM_TASKS):
            pass
        return count

    async def process_due(self, *, now: datetime, limit: int) -> int:
        """Process at most `limit` due events; returns how many this call completed."""
        async with acquire(self._store.pool) as connection:
            cursor = await connection.execute(SQL.find_due_events, {"now": now, "limit": limit})
            due = [row[0] for row in await cursor.fetchall()]
        results = await asyncio.gather(*(self.process(event_id) for event_id in due), return_exceptions=True)
        for event_id, result in zip(due, results, strict=True):
            if isinstance(result, Exception):
                _log.error("event was not processed", event_id=event_id, trace=safe_traceback(result))
        return sum(result is True for result in results)

    async def process(self, event_id: str) -> bool:
        """Process one event; True when this call completed it, False when another one has it or it must wait."""
        event = await self._claim(event_id)
        if event is None:
            return False
        try:
            await self._apply(event)
        except StripeCallError as error:
            _log.warning("event waits for Stripe", event_id=event_id, why=error.reason)
            return False
        EVENTS.labels(outcome="done").inc()
        return True

    async def replay(self, event_id: str) -> bool:
        """Process an event again, including a DEAD one and one of the last 30 days that was never received.

        Returns False when the event is rejected or must wait. Raises StripeNotFound when Stripe has no such event.
        """
        async with acquire(self._store.pool) as connection:
            cursor = await connection.execute(SQL.revive_event, {"event_id": event_id, "now": self._store.clock()})
        if cursor.rowcount == 0:
            event = await self._stripe.retrieve_event(event_id)
            if not self._is_expected(event):
                return False
            await self._insert(event, status="RECEIVED")
        return await self.process(event_id)

    async def close(self) -> None:
        """Wait for the background processing."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _collect(self, *, since: datetime, undelivered_only: bool) -> int:
        events = await self._stripe.list_events(since=since, undelivered_only=undelivered_only)
        return sum([await self._insert(event, status="RECEIVED") for event in events if self._is_expected(event)])

    def _is_expected(self, event: StripeEvent) -> bool:
        return (
            event.object == "event"
            and event.livemode == self._store.terms.livemode
            and event.account_id in {None, self._account_id}
        )

    async def _insert(self, event: StripeEvent, *, status: str) -> bool:
        values = {"event_id": event.event_id, "type": event.type, "payload": event.payload, "status": status}
        async with acquire(self._store.pool) as connection:
            cursor = await connection.execute(SQL.insert_event, values | {"now": self._store.clock()})
        new = cursor.rowcount == 1
        if new:
            await self._store.failpoint("commit event")
        return new

    def _start(self, event_id: str) -> None:
        if len(self._tasks) < _MAXIMUM_TASKS:
            task = asyncio.create_task(self.process(event_id), name=f"event {event_id}")
            self._tasks.add(task)
            task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("the processing of an event failed", task=task.get_name(), trace=safe_traceback(error))

    async def _claim(self, event_id: str) -> StripeEvent | None:
        now = self._store.clock()
        async with acquire(self._store.pool) as connection:
            row = await (await connection.execute(SQL.find_event, {"event_id": event_id})).fetchone()
            if row is None or row[2] != "RECEIVED":
                return None
            attempts = row[3]
            if attempts >= _MAXIMUM_ATTEMPTS:
                await connection.execute(SQL.finish_event, {"event_id": event_id, "status": "DEAD"})
                EVENTS.labels(outcome="dead").inc()
                _log.error("an event could not be processed; replay it", event_id=event_id)
                return None
            pause = min(_SHORTEST_PAUSE * 2**attempts, _LONGEST_PAUSE)
            claim = {"event_id": event_id, "attempts": attempts, "now": now, "next_attempt_time": now + pause}
            cursor = await connection.execute(SQL.claim_event, claim)
        await self._store.failpoint("commit event claim")
        return parse_event(row[1]) if cursor.rowcount == 1 else None

    async def _apply(self, event: StripeEvent) -> None:
        """Retrieve the event's invoice or card from Stripe, apply it, and then mark the event DONE.

        Not in one transaction, as on Citus the organization is on another server than the events: after a crash
        between the two the event is applied again, which changes nothing.
        """
        try:
            if event.type == "checkout.session.completed" and event.session_id:
                await save_card(self._store, self._stripe, event.session_id)
            if event.payment_method_id:
                await follow_card(self._store, self._stripe, event.payment_method_id)
            invoice_id = await self._find_invoice(event)
            invoice = await self._stripe.retrieve(invoice_id) if invoice_id else None
            owner = owner_of(invoice, self._store.terms.environment) if invoice else None
            if invoice and owner:
                await self._store.apply_invoice(*owner, invoice, flags=await self._find_flags(event, invoice))
        except (StripeNotFound, TopUpNotFound) as error:
            _log.warning("an event has no top-up here", event_id=event.event_id, why=type(error).__name__)
        async with acquire(self._store.pool) as connection:
            await connection.execute(SQL.finish_event, {"event_id": event.event_id, "status": "DONE"})

    async def _find_flags(self, event: StripeEvent, invoice: Invoice) -> dict[TopUpFlag, bool]:
        if event.type.startswith("charge.dispute.") and event.payment_intent_id is not None:
            # The event may be older than another about the same dispute, and other payments may be disputed too.
            payments = {event.payment_intent_id, *invoice.payment_intent_ids}
            return {TopUpFlag.DISPUTED: any([await self._stripe.is_disputed(each) for each in payments])}
        return {FLAGS[event.type]: True} if event.type in FLAGS else {}

    async def _find_invoice(self, event: StripeEvent) -> str | None:
        if event.type not in EVENT_TYPES:
            return None
        if event.invoice_id is None and event.payment_intent_id is not None:
            return await self._stripe.find_invoice_of_payment(event.payment_intent_id)
        return event.invoice_id


async def remove_stripe_events(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Delete DONE or REJECTED events created earlier, at most `limit` in each step; yields how many.

    An event that Stripe sends again later is processed again, which changes nothing. DEAD events are kept for a person.
    """
    while count := await _remove_next(pool, before=before, limit=limit):
        yield count


async def _remove_next(pool: Pool, *, before: datetime, limit: int) -> int:
    async with acquire(pool) as connection:
        cursor = await connection.execute(SQL.find_old_events, {"before": before, "limit": limit})
        event_ids = [row[0] for row in await cursor.fetchall()]
        return (await connection.execute(SQL.remove_events, {"event_ids": event_ids})).rowcount if event_ids else 0
