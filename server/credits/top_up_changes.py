"""Changes a top-up in the database, each change one transaction, and credits what was paid."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import structlog
from prometheus_client import Counter
from psycopg.types.json import Jsonb

from server.credits.accounts import Account, lock_or_create_account
from server.credits.ledger import LedgerEntryKind, append_entry
from server.credits.top_up_rows import TopUp, find_top_up, lock_top_up, write_top_up
from server.credits.top_up_settlement import Flag, TopUpTerms, decide
from server.credits.top_up_states import TopUpStatus
from server.database.pool import Connection, Pool, connection, repeat_transient, transaction
from server.database.queries import load_queries
from server.errors import TopUpNotFound
from server.ids import new_id
from server.payments.invoices import Invoice, InvoiceStatus
from server.stops import Reached, go_on

SQL = load_queries(__file__)
log = structlog.get_logger(__name__)

ATTENTION = Counter("pulsa_top_ups_needing_attention", "Top-ups that a person must look at, by why.", ["why"])

Edit = Callable[[TopUp], TopUp]
Also = Callable[[Connection], Awaitable[None]]


def utc_now() -> datetime:
    """The time of this machine."""
    return datetime.now(UTC)


class TopUpChanges:
    """Reads and changes top-ups. Every method is one transaction, repeatable when the connection is lost."""

    def __init__(
        self,
        pool: Pool,
        terms: TopUpTerms,
        *,
        low_balance_threshold: int,
        clock: Callable[[], datetime] = utc_now,
        reached: Reached = go_on,
    ) -> None:
        """low_balance_threshold is a new account's."""
        self.pool = pool
        self.terms = terms
        self.clock = clock
        self._low_balance_threshold = low_balance_threshold
        self.reached = reached

    async def lock_account(self, connection: Connection, organization_id: str) -> Account:
        """The organization's account, made when it has none, locked before any of its top-ups."""
        return await lock_or_create_account(
            connection, organization_id, low_balance_threshold=self._low_balance_threshold, now=self.clock()
        )

    async def read(self, organization_id: str, top_up_id: UUID) -> TopUp:
        """The top-up as last committed. Raises TopUpNotFound."""
        async with connection(self.pool) as lent:
            top_up = await find_top_up(lent, organization_id, top_up_id)
        if top_up is None:
            raise TopUpNotFound
        return top_up

    async def change(self, organization_id: str, top_up_id: UUID, edit: Edit, *, point: str) -> TopUp:
        """Commit what `edit` makes of the locked top-up, and give it as it then is. Raises TopUpNotFound."""

        async def once() -> tuple[TopUp, TopUp]:
            async with transaction(self.pool) as connection:
                before = await lock_top_up(connection, organization_id, top_up_id)
                if before is None:
                    raise TopUpNotFound
                after = edit(before)
                await write_top_up(connection, before=before, after=after)
                return before, after

        return await self._committed(*await repeat_transient(once), point=point)

    async def remember_customer(self, top_up: TopUp, customer_id: str | None, *, edit: Edit) -> TopUp:
        """Commit the organization's Stripe customer (None: forget it) together with an edit of its top-up."""

        async def once() -> tuple[TopUp, TopUp]:
            async with transaction(self.pool) as connection:
                account = await self.lock_account(connection, top_up.organization_id)
                values = {"organization_id": account.organization_id, "stripe_customer_id": customer_id}
                await connection.execute(SQL.write_customer, values)
                before = await lock_top_up(connection, top_up.organization_id, top_up.top_up_id)
                if before is None:
                    raise TopUpNotFound
                after = replace(edit(before), stripe_customer_id=customer_id)
                await write_top_up(connection, before=before, after=after)
                return before, after

        return await self._committed(*await repeat_transient(once), point="customer")

    async def settle(
        self,
        organization_id: str,
        top_up_id: UUID,
        invoice: Invoice,
        *,
        flag: Flag | None = None,
        also: Also | None = None,
    ) -> TopUp:
        """Make the top-up what the invoice says, crediting it once when it is paid; `also` joins the transaction.

        An invoice other than the top-up's own changes nothing but flags it. Raises TopUpNotFound.
        """

        async def once() -> tuple[TopUp, TopUp]:
            async with transaction(self.pool) as connection:
                # Locked for money only: the account is what every send of the organization needs.
                paid = invoice.status is InvoiceStatus.PAID
                account = await self.lock_account(connection, organization_id) if paid else None
                before = await lock_top_up(connection, organization_id, top_up_id)
                if before is None:
                    raise TopUpNotFound
                after = self._judge(_flagged(before, flag) if flag else before, invoice)
                if account and after.status is TopUpStatus.PAID and before.status is not TopUpStatus.PAID:
                    await self._credit(connection, account, after)
                await write_top_up(connection, before=before, after=after)
                if also:
                    await also(connection)
                return before, after

        return await self._committed(*await repeat_transient(once), point="settle")

    def _judge(self, top_up: TopUp, invoice: Invoice) -> TopUp:
        if top_up.stripe_invoice_id in {None, invoice.invoice_id}:
            return decide(top_up, invoice, self.terms, now=self.clock())
        return _flagged(top_up, Flag.SECOND_INVOICE)

    async def _credit(self, connection: Connection, account: Account, top_up: TopUp) -> None:
        now = self.clock()
        await append_entry(
            connection,
            account,
            kind=LedgerEntryKind.TOP_UP,
            credits=top_up.credits,
            reference_id=top_up.top_up_id,
            now=now,
        )
        if account.alert_email is None:
            return
        details = {
            "credits": top_up.credits,
            "available_credits": account.available_credits,
            "currency_code": top_up.currency_code,
            "total": str(top_up.invoice_total or top_up.total),
            "invoice_number": top_up.invoice_number,
        }
        await connection.execute(
            SQL.insert_payment_notice,
            {
                "organization_id": top_up.organization_id,
                "notice_id": new_id(),
                "reference_id": str(top_up.top_up_id),
                "email": account.alert_email,
                "details": Jsonb(details),
                "now": now,
            },
        )

    async def _committed(self, before: TopUp, after: TopUp, *, point: str) -> TopUp:
        await self.reached(f"commit {point}")
        if after.status is TopUpStatus.REVIEW and before.status is not TopUpStatus.REVIEW:
            _alert(after, after.failure_reason)
        for flag in set(after.flags) - set(before.flags):
            _alert(after, flag)
        return after


def _flagged(top_up: TopUp, flag: Flag) -> TopUp:
    return replace(top_up, flags=tuple(dict.fromkeys([*top_up.flags, flag])))


def _alert(top_up: TopUp, why: str) -> None:
    ATTENTION.labels(why=why.lower()).inc()
    log.error(
        "top-up needs attention",
        why=why.lower(),
        organization_id=top_up.organization_id,
        top_up_id=str(top_up.top_up_id),
        invoice_id=top_up.stripe_invoice_id,
        status=top_up.status.value,
    )
