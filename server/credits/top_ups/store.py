"""The rows of top-ups: TopUpStore, whose methods are one transaction each, and the statements that they run.

The statements are functions that join the caller's transaction. Lock order: the account first, then the top-up. A
transaction that needs only the top-up locks only the top-up.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter
from psycopg.types.json import Jsonb

from server.clock import Clock
from server.credits.accounts import Account, insert_notices, lock_or_create_account
from server.credits.ledger import AuditKeys, LedgerEntryKind, append_entry, find_entry
from server.credits.stripe.client import Failpoint
from server.credits.stripe.invoices import Invoice, InvoiceStatus
from server.credits.top_ups.automatic import AutomaticTopUp, resume
from server.credits.top_ups.automatic_store import (
    follow_top_up,
    lock_or_create_automatic,
    read_consented_total,
    write_automatic,
)
from server.credits.top_ups.state_machine import (
    TRANSITIONS,
    UNFINISHED,
    Resolution,
    TopUp,
    TopUpFlag,
    TopUpStatus,
    TopUpTerms,
    decide,
    resolve,
    review_payment,
    with_flags,
)
from server.errors import RequestIdReused, TopUpAlreadyOpen, TopUpNotFound
from server.events.log import Event, EventKind, append_events
from server.ids import new_id
from server.postgres.columns import TableColumns
from server.postgres.pool import Connection, Pool, acquire, retry_transient, transaction
from server.postgres.queries import load_queries
from server.postgres.workers import find_keys

_COLUMNS = TableColumns(TopUp)
SQL = load_queries(__file__, top_up=_COLUMNS, values=", ".join(f"%({name})s" for name in _COLUMNS.names))
_log = structlog.get_logger(__name__)

NEWEST = UUID(int=2**128 - 1)
"""Greater than every id: the `before` of a first page."""

ATTENTION = Counter("pulsa_top_ups_needing_attention", "Top-ups that began to need a person, by reason.", ["why"])

TOP_UP_FIELDS = tuple(each.name for each in fields(TopUp))
Edit = Callable[[TopUp], TopUp]
"""Returns the changed top-up. It must be repeatable: it runs again after a lost connection."""
InTransaction = Callable[[Connection], Awaitable[None]]
"""Runs further statements in a transaction before it commits."""


class TopUpStore:
    """Reads and changes top-ups. Each method is one transaction, which is retried after a lost connection."""

    def __init__(
        self,
        pool: Pool,
        terms: TopUpTerms,
        *,
        low_balance_threshold: int,
        audit_keys: AuditKeys | None = None,
        clock: Clock,
        failpoint: Failpoint | None = None,
    ) -> None:
        """low_balance_threshold is the threshold of accounts that this store creates; audit_keys make entries' MACs."""
        self.pool = pool
        self.terms = terms
        self.clock = clock
        self._low_balance_threshold = low_balance_threshold
        self._audit_keys = audit_keys
        self._failpoint = failpoint

    async def failpoint(self, name: str) -> None:
        """Await the failpoint under this name; without one, do nothing."""
        if self._failpoint:
            await self._failpoint(name)

    async def lock_account(self, connection: Connection, organization_id: str) -> Account:
        """Lock the organization's account, and create it first if there is none. Call it before locking a top-up."""
        return await lock_or_create_account(
            connection, organization_id, low_balance_threshold=self._low_balance_threshold, now=self.clock()
        )

    async def lock_automatic(
        self, connection: Connection, organization_id: str
    ) -> tuple[Account, TopUp | None, AutomaticTopUp]:
        """Lock the account, its unfinished top-up if it has one, and its row of automatic top-ups.

        Creates the account and the row if there is none.
        """
        account = await self.lock_account(connection, organization_id)
        unfinished = await find_unfinished(connection, organization_id)
        if unfinished:
            unfinished = await lock_top_up(connection, organization_id, unfinished.top_up_id)
            # It may have ended before the lock.
            unfinished = unfinished if unfinished and unfinished.status in UNFINISHED else None
        return account, unfinished, await lock_or_create_automatic(connection, organization_id, now=self.clock())

    async def restart_automatic(
        self, connection: Connection, unfinished: TopUp | None, *, before: AutomaticTopUp, after: AutomaticTopUp
    ) -> AutomaticTopUp:
        """Store the row after a new consent or card, and its unfinished top-up as `resume` says; returns the row."""
        consented_total = await read_consented_total(connection, after.organization_id)
        after, resumed = resume(after, unfinished, consented_total=consented_total, now=self.clock())
        if unfinished and resumed:
            await self._write(connection, unfinished, resumed)
        await write_automatic(connection, before=before, after=after, now=self.clock())
        return after

    async def read(self, organization_id: str, top_up_id: UUID) -> TopUp:
        """Read the top-up as last committed. Raises TopUpNotFound."""
        async with acquire(self.pool) as connection:
            top_up = await find_top_up(connection, organization_id, top_up_id)
        if top_up is None:
            raise TopUpNotFound
        return top_up

    async def change(self, organization_id: str, top_up_id: UUID, edit: Edit, *, point: str) -> TopUp:
        """Lock the top-up, apply `edit` and commit; returns the committed top-up. Raises TopUpNotFound.

        Then awaits the failpoint `commit {point}`.
        """

        async def once() -> tuple[TopUp, TopUp]:
            async with transaction(self.pool) as connection:
                before = await lock_top_up(connection, organization_id, top_up_id)
                if before is None:
                    raise TopUpNotFound
                after = edit(before)
                await self._write(connection, before, after)
                return before, after

        return await self._committed(*await retry_transient(once), point=point)

    async def set_missing_customer(self, organization_id: str, customer_id: str) -> str:
        """Set the account's Stripe customer unless it has one; returns the one that it has."""

        async def once() -> str:
            async with transaction(self.pool) as connection:
                account = await self.lock_account(connection, organization_id)
                if account.stripe_customer_id is None:
                    await self._write_customer(connection, organization_id, customer_id)
                return account.stripe_customer_id or customer_id

        stored = await retry_transient(once)
        await self.failpoint("commit customer")
        return stored

    async def clear_customer(self, organization_id: str, customer_id: str) -> None:
        """Clear the account's Stripe customer if it is this one, which Stripe does not have."""

        async def once() -> None:
            async with transaction(self.pool) as connection:
                account = await self.lock_account(connection, organization_id)
                if account.stripe_customer_id == customer_id:
                    await self._write_customer(connection, organization_id, None)

        await retry_transient(once)

    async def _write_customer(self, connection: Connection, organization_id: str, customer_id: str | None) -> None:
        values = {"organization_id": organization_id, "stripe_customer_id": customer_id}
        await connection.execute(SQL.write_customer, values)

    async def set_customer(self, top_up: TopUp, customer_id: str | None, *, edit: Edit) -> TopUp:
        """Set the Stripe customer of the top-up, and of an account without one, and apply `edit` to the top-up.

        The top-up gets the account's customer if it has one; None clears both.

        Commits both in one transaction. Raises TopUpNotFound.
        """

        async def once() -> tuple[TopUp, TopUp]:
            async with transaction(self.pool) as connection:
                account = await self.lock_account(connection, top_up.organization_id)
                # A page for a card may have created one meanwhile.
                kept = (account.stripe_customer_id or customer_id) if customer_id else None
                await self._write_customer(connection, top_up.organization_id, kept)
                before = await lock_top_up(connection, top_up.organization_id, top_up.top_up_id)
                if before is None:
                    raise TopUpNotFound
                after = replace(edit(before), stripe_customer_id=kept)
                await self._write(connection, before, after)
                return before, after

        return await self._committed(*await retry_transient(once), point="customer")

    async def apply_invoice(
        self,
        organization_id: str,
        top_up_id: UUID,
        invoice: Invoice,
        *,
        flags: Mapping[TopUpFlag, bool] | None = None,
        lost: TopUp | None = None,
        in_transaction: InTransaction | None = None,
    ) -> TopUp:
        """Apply the invoice to the top-up; when it becomes PAID, add its credits in the same transaction, once.

        A paid top-up whose credits the account cannot hold goes to REVIEW instead.
        `flags` are set or cleared; `in_transaction` runs before the commit. An invoice other than the top-up's own only
        adds the flag SECOND_INVOICE. `lost` is inserted when there is no such top-up. Raises TopUpNotFound, and
        TopUpAlreadyOpen when `lost` would be a second unfinished one.
        """

        async def once() -> tuple[TopUp, TopUp]:
            async with transaction(self.pool) as connection:
                # The account is locked for a payment only, because every send of the organization needs its lock.
                paid = invoice.status is InvoiceStatus.PAID
                account = await self.lock_account(connection, organization_id) if paid or lost else None
                stored = await lock_top_up(connection, organization_id, top_up_id)
                before = stored or lost
                if before is None:
                    raise TopUpNotFound
                after = self._decide(with_flags(before, flags or {}), invoice)
                if account and after.status is TopUpStatus.PAID and before.status is not TopUpStatus.PAID:
                    if account.can_hold(after.credits):
                        await self._credit(connection, account, after)
                    else:
                        after = review_payment(after, "balance_above_maximum")
                if account and (self.terms.freeze_disputed or after.is_frozen):
                    after = await self._freeze_or_thaw(connection, account, after)
                if stored:
                    await self._write(connection, stored, after)
                else:
                    await _insert_lost(connection, after)
                if in_transaction:
                    await in_transaction(connection)
                return before, after

        return await self._committed(*await retry_transient(once), point="apply invoice")

    def _decide(self, top_up: TopUp, invoice: Invoice) -> TopUp:
        if top_up.stripe_invoice_id in {None, invoice.invoice_id}:
            return decide(top_up, invoice, self.terms, now=self.clock())
        return with_flags(top_up, {TopUpFlag.SECOND_INVOICE: True})

    async def resolve(self, organization_id: str, top_up_id: UUID, resolution: Resolution) -> TopUp:
        """Store a person's decision and add its credits, as an ADJUSTMENT with its reason and author, once.

        A repeat of a request_id changes nothing. Raises TopUpNotFound, TopUpNotResolvable, BalanceAboveMaximum, and
        RequestIdReused for another decision under the same request_id.
        """

        async def once() -> tuple[TopUp, TopUp]:
            async with transaction(self.pool) as connection:
                account = await self.lock_account(connection, organization_id)
                before = await lock_top_up(connection, organization_id, top_up_id)
                if before is None:
                    raise TopUpNotFound
                if await self._is_resolved(connection, before, resolution):
                    return before, before
                after = resolve(before, resolution, now=self.clock())
                if resolution.credits:
                    await self._adjust(
                        connection, account, resolution.credits, request_id=resolution.request_id,
                        reason=resolution.reason, created_by=resolution.resolved_by,
                    )  # fmt: skip
                await self._write(connection, before, after)
                return before, after

        return await self._committed(*await retry_transient(once), point="resolve")

    async def _is_resolved(self, connection: Connection, top_up: TopUp, resolution: Resolution) -> bool:
        """Whether this decision was stored. Raises RequestIdReused when its request_id has another."""
        entry = await find_entry(
            connection,
            top_up.organization_id,
            kind=LedgerEntryKind.ADJUSTMENT,
            reference_id=resolution.request_id,
        )
        if entry is None and top_up.resolve_request_id != resolution.request_id:
            return False
        stored = (entry.credits, entry.reason) if entry else (0, top_up.resolve_reason)
        if stored != (resolution.credits, resolution.reason):
            raise RequestIdReused
        return True

    async def _freeze_or_thaw(self, connection: Connection, account: Account, top_up: TopUp) -> TopUp:
        """Take the credits of a disputed payment back, as far as they are left; give them back when it is won."""
        is_disputed = TopUpFlag.DISPUTED in top_up.flags
        if is_disputed and not top_up.is_frozen and top_up.status is TopUpStatus.PAID:
            frozen = min(top_up.credits, account.available_credits)
        elif top_up.is_frozen and not is_disputed:
            frozen = 0
        else:
            return top_up
        if change := top_up.frozen_credits - frozen:
            reason = f"{'dispute won' if change > 0 else 'disputed'}: top-up {top_up.top_up_id}"
            await self._adjust(connection, account, change, request_id=new_id(), reason=reason, created_by="stripe")
        return replace(top_up, frozen_credits=frozen, is_frozen=is_disputed)

    async def _adjust(
        self, connection: Connection, account: Account, credits: int, *, request_id: UUID, reason: str, created_by: str
    ) -> None:
        await append_entry(
            connection,
            account,
            kind=LedgerEntryKind.ADJUSTMENT,
            credits=credits,
            reference_id=request_id,
            now=self.clock(),
            reason=reason,
            created_by=created_by,
            audit_keys=self._audit_keys,
        )

    async def _credit(self, connection: Connection, account: Account, top_up: TopUp) -> None:
        now = self.clock()
        await append_entry(
            connection,
            account,
            kind=LedgerEntryKind.TOP_UP,
            credits=top_up.credits,
            reference_id=top_up.top_up_id,
            now=now,
            audit_keys=self._audit_keys,
        )
        if not account.has_contacts:
            return
        details = {
            "credits": top_up.credits,
            "available_credits": account.available_credits,
            "currency_code": top_up.currency_code,
            "total": str(top_up.invoice_total or top_up.total),
            "tax": str(top_up.tax or 0),
            "invoice_number": top_up.invoice_number,
        }
        cause = (str(top_up.top_up_id), details)
        await insert_notices(connection, "PAYMENT_CONFIRMED", {top_up.organization_id: cause}, now=now)

    async def _write(self, connection: Connection, before: TopUp, after: TopUp) -> None:
        await write_top_up(connection, before=before, after=after, terms=self.terms, now=self.clock())

    async def _committed(self, before: TopUp, after: TopUp, *, point: str) -> TopUp:
        """Await the failpoint, then report a new REVIEW and new flags to the log and the metric."""
        await self.failpoint(f"commit {point}")
        if after.status is TopUpStatus.REVIEW and before.status is not TopUpStatus.REVIEW:
            _report_attention(after, after.failure_reason)
        for flag in set(after.flags) - set(before.flags):
            _report_attention(after, flag)
        return after


async def insert_top_up(connection: Connection, top_up: TopUp) -> None:
    """Insert a new top-up. A unique constraint rejects a second unfinished one."""
    await connection.execute(SQL.insert_top_up, _values(top_up))
    await append_events(connection, [_event(top_up)], now=top_up.create_time)


async def set_contact(connection: Connection, organization_id: str, *, email: str, name: str) -> None:
    """Let the address get the notices, unless another one is set, and let them have the name, unless it is empty."""
    values = {"organization_id": organization_id, "alert_email": email, "billing_name": name}
    await connection.execute(SQL.set_contact, values)


async def _insert_lost(connection: Connection, top_up: TopUp) -> None:
    if top_up.status in UNFINISHED and (other := await find_unfinished(connection, top_up.organization_id)):
        raise TopUpAlreadyOpen(top_up_id=str(other.top_up_id), hosted_invoice_url=other.hosted_invoice_url)
    await insert_top_up(connection, top_up)


async def find_top_up(connection: Connection, organization_id: str, top_up_id: UUID) -> TopUp | None:
    """Read a top-up, or None."""
    return await _fetch_one(connection, SQL.find_top_up, organization_id, top_up_id)


async def lock_top_up(connection: Connection, organization_id: str, top_up_id: UUID) -> TopUp | None:
    """Read a top-up, or None, and lock it until this transaction ends."""
    return await _fetch_one(connection, SQL.lock_top_up, organization_id, top_up_id)


async def list_top_ups(
    connection: Connection, organization_id: str, *, statuses: Iterable[TopUpStatus], before: UUID, limit: int
) -> list[TopUp]:
    """At most `limit` top-ups in these statuses whose id is below `before`, newest first."""
    cursor = await connection.execute(
        SQL.list_top_ups,
        {"organization_id": organization_id, "statuses": list(statuses), "before": before, "limit": limit},
    )
    return [_top_up(row) for row in await cursor.fetchall()]


async def find_unfinished(connection: Connection, organization_id: str) -> TopUp | None:
    """The organization's one top-up that is CREATING, OPEN or CANCELING, or None."""
    cursor = await connection.execute(SQL.find_unfinished, {"organization_id": organization_id})
    row = await cursor.fetchone()
    return await find_top_up(connection, organization_id, row[0]) if row else None


async def has_returned_overpayment(connection: Connection, organization_id: str) -> bool:
    """Whether money of an overpaid top-up went back, and nobody has resolved what it left in the customer's balance."""
    cursor = await connection.execute(SQL.find_returned_overpayment, {"organization_id": organization_id})
    return await cursor.fetchone() is not None


async def find_due_top_ups(pool: Pool, *, now: datetime, limit: int) -> list[tuple[str, UUID]]:
    """The organization_id and top_up_id of at most `limit` unleased top-ups that are due, longest due first."""
    return await find_keys(pool, SQL.find_due_top_ups, {"now": now, "limit": limit})


async def write_top_up(
    connection: Connection, *, before: TopUp, after: TopUp, terms: TopUpTerms, now: datetime
) -> None:
    """Store a top-up that was changed under its lock; the automatic top-ups follow it.

    Raises ValueError for a change outside TRANSITIONS.
    """
    if after.status is not before.status and after.status not in TRANSITIONS[before.status]:
        raise ValueError(f"a top-up cannot go from {before.status} to {after.status}")
    if after != before:
        await connection.execute(SQL.write_top_up, _values(after))
    if after.is_automatic and (before.status, before.flags) != (after.status, after.flags):
        await follow_top_up(connection, before, after, terms, now=now)
    if (after.status, after.flags) != (before.status, before.flags):
        await append_events(connection, [_event(after)], now=now)


async def _fetch_one(connection: Connection, query: str, organization_id: str, top_up_id: UUID) -> TopUp | None:
    cursor = await connection.execute(query, {"organization_id": organization_id, "top_up_id": top_up_id})
    row = await cursor.fetchone()
    return _top_up(row) if row else None


def _event(top_up: TopUp) -> Event:
    details = {
        "top_up_id": str(top_up.top_up_id),
        "status": top_up.status.value,
        "credits": top_up.credits,
        "flags": list(top_up.flags),
    }
    return Event(top_up.organization_id, EventKind.TOP_UP_CHANGED, details)


def _top_up(row: tuple[Any, ...]) -> TopUp:
    values = dict(zip(TOP_UP_FIELDS, row, strict=True))
    end_status = values["end_status"] and TopUpStatus(values["end_status"])
    lists = {name: tuple(values[name]) for name in ("flags", "resolved_flags")}
    return TopUp(**(values | lists | {"status": TopUpStatus(values["status"]), "end_status": end_status}))


def _values(top_up: TopUp) -> dict[str, Any]:
    lists = {"flags": list(top_up.flags), "resolved_flags": list(top_up.resolved_flags)}
    return asdict(top_up) | lists | {"stripe_parameters": Jsonb(top_up.stripe_parameters)}


def _report_attention(top_up: TopUp, reason: str) -> None:
    ATTENTION.labels(why=reason.lower()).inc()
    _log.error(
        "top-up needs attention",
        why=reason.lower(),
        organization_id=top_up.organization_id,
        top_up_id=str(top_up.top_up_id),
        invoice_id=top_up.stripe_invoice_id,
        status=top_up.status.value,
    )
