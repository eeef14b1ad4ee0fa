"""The inbox of Stripe's events: stored before Stripe is answered, processed afterwards, each until it is done."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from prometheus_client import Counter

from server.credits.top_up_changes import TopUpChanges
from server.credits.top_up_settlement import Flag, owner_of
from server.database.pool import Connection, connection, repeat_transient
from server.database.queries import load_queries
from server.errors import TopUpNotFound
from server.payments.client import Payments
from server.payments.failures import NotFound, PaymentsError
from server.payments.webhooks import EVENT_TYPES, StripeEvent, parse_event, verify

SQL = load_queries(__file__)
log = structlog.get_logger(__name__)

EVENTS = Counter("pulsa_stripe_events", "Stripe events by what became of them.", ["outcome"])

FLAGS = {
    "charge.refunded": Flag.REFUNDED,
    "charge.dispute.created": Flag.DISPUTED,
    "charge.dispute.closed": Flag.DISPUTED,
    "credit_note.created": Flag.CREDIT_NOTE,
    "invoice.overpaid": Flag.OVERPAID,
}
"""What an event says that its invoice does not."""

_TASKS = 32
"""More than these at once are left to the night watch, a second later."""
_MOST_ATTEMPTS = 16
_SHORTEST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=30), timedelta(hours=1)
_UNDELIVERED_SINCE = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """What Stripe's webhook is answered."""

    event_id: str
    duplicate: bool
    """It had been stored before."""


class StripeInbox:
    """Events of one Stripe account. Each is stored once and then processed until it is done or dead."""

    def __init__(
        self,
        changes: TopUpChanges,
        payments: Payments,
        *,
        secrets: Sequence[str],
        account_id: str | None = None,
    ) -> None:
        """Secrets of the webhook endpoint, several while one is rolled. account_id is whose events are expected."""
        self._changes = changes
        self._payments = payments
        self._secrets = tuple(secrets)
        self._account_id = account_id
        self._tasks: set[asyncio.Task[bool]] = set()

    async def record(self, payload: bytes, signature: str) -> RecordedEvent:
        """Store a webhook; once this returns, the event is safe, and it is processed in the background.

        Raises StripeEventInvalid, with nothing stored, for what Stripe did not sign.
        """
        event = verify(payload, signature, secrets=self._secrets, now=self._changes.clock())
        expected = self._is_expected(event)
        new = await repeat_transient(lambda: self._store(event, status="RECEIVED" if expected else "REJECTED"))
        if not expected:
            log.error("a signed event is not of this account and mode", event_id=event.event_id, type=event.type)
        EVENTS.labels(outcome="duplicate" if not new else "received" if expected else "rejected").inc()
        if new and expected:
            self._start(event.event_id)
        return RecordedEvent(event.event_id, duplicate=not new)

    async def collect_undelivered(self, *, now: datetime) -> int:
        """Store the events of the last three days that no webhook brought; how many were new. Raises PaymentsError."""
        events = await self._payments.list_undelivered_events(since=now - _UNDELIVERED_SINCE)
        return sum([await self._store(event, status="RECEIVED") for event in events if self._is_expected(event)])

    async def process_due(self, *, now: datetime, limit: int) -> int:
        """Process events that wait for it; how many are done now."""
        async with connection(self._changes.pool) as lent:
            cursor = await lent.execute(SQL.find_due_events, {"now": now, "limit": limit})
            due = [row[0] for row in await cursor.fetchall()]
        results = await asyncio.gather(*(self.process(event_id) for event_id in due), return_exceptions=True)
        for event_id, result in zip(due, results, strict=True):
            if isinstance(result, Exception):
                log.error("event was not processed", event_id=event_id, exc_info=result)
        return sum(result is True for result in results)

    async def process(self, event_id: str) -> bool:
        """Do what an event asks for; True when it is done by this call, False when it is somebody's or is for later."""
        event = await self._claim(event_id)
        if event is None:
            return False
        try:
            await self._apply(event)
        except PaymentsError as error:
            log.warning("event waits for Stripe", event_id=event_id, why=type(error).__name__)
            return False
        EVENTS.labels(outcome="done").inc()
        return True

    async def replay(self, event_id: str) -> bool:
        """Process an event of the last 30 days again, dead ones and ones that never came included.

        False when it is rejected or has to wait. Raises payments' NotFound when Stripe does not know it.
        """
        async with connection(self._changes.pool) as lent:
            cursor = await lent.execute(SQL.revive_event, {"event_id": event_id, "now": self._changes.clock()})
        if cursor.rowcount == 0:
            event = await self._payments.retrieve_event(event_id)
            if not self._is_expected(event):
                return False
            await self._store(event, status="RECEIVED")
        return await self.process(event_id)

    async def close(self) -> None:
        """Wait for what is being processed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _is_expected(self, event: StripeEvent) -> bool:
        return (
            event.object == "event"
            and event.livemode == self._changes.terms.livemode
            and event.account_id in {None, self._account_id}
        )

    async def _store(self, event: StripeEvent, *, status: str) -> bool:
        values = {"event_id": event.event_id, "type": event.type, "payload": event.payload, "status": status}
        async with connection(self._changes.pool) as lent:
            cursor = await lent.execute(SQL.insert_event, values | {"now": self._changes.clock()})
        new = cursor.rowcount == 1
        if new:
            await self._changes.reached("commit event")
        return new

    def _start(self, event_id: str) -> None:
        if len(self._tasks) < _TASKS:
            task = asyncio.create_task(self.process(event_id), name=f"event {event_id}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("an event's processing broke off", task=task.get_name(), exc_info=error)

    async def _claim(self, event_id: str) -> StripeEvent | None:
        now = self._changes.clock()
        async with connection(self._changes.pool) as lent:
            row = await (await lent.execute(SQL.find_event, {"event_id": event_id})).fetchone()
            if row is None or row[2] != "RECEIVED":
                return None
            attempts = row[3]
            if attempts >= _MOST_ATTEMPTS:
                await lent.execute(SQL.finish_event, {"event_id": event_id, "status": "DEAD"})
                EVENTS.labels(outcome="dead").inc()
                log.error("an event could not be processed; replay it", event_id=event_id)
                return None
            pause = min(_SHORTEST_PAUSE * 2**attempts, _LONGEST_PAUSE)
            claim = {"event_id": event_id, "attempts": attempts, "now": now, "next_attempt_time": now + pause}
            cursor = await lent.execute(SQL.claim_event, claim)
        await self._changes.reached("commit event claim")
        return parse_event(row[1]) if cursor.rowcount == 1 else None

    async def _apply(self, event: StripeEvent) -> None:
        """Ask Stripe for the invoice that the event is about, and make its top-up agree."""

        async def finish(connection: Connection) -> None:
            await connection.execute(SQL.finish_event, {"event_id": event.event_id, "status": "DONE"})

        try:
            invoice_id = await self._find_invoice(event)
            invoice = await self._payments.retrieve(invoice_id) if invoice_id else None
            owner = owner_of(invoice, self._changes.terms.environment) if invoice else None
            if invoice and owner:
                await self._changes.settle(*owner, invoice, flag=FLAGS.get(event.type), also=finish)
                return
        except (NotFound, TopUpNotFound) as error:
            log.warning("an event is about nothing here", event_id=event.event_id, why=type(error).__name__)
        async with connection(self._changes.pool) as lent:
            await finish(lent)

    async def _find_invoice(self, event: StripeEvent) -> str | None:
        if event.type not in EVENT_TYPES:
            return None
        if event.invoice_id is None and event.payment_intent_id is not None:
            return await self._payments.find_invoice_of_payment(event.payment_intent_id)
        return event.invoice_id
