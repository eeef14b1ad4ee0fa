"""Compares Stripe's invoices with the top-ups, in both directions, and restores top-ups that the database has lost.

The audit compares the top-ups with the ledger.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from psycopg.errors import UniqueViolation

from server.credits.accounts import Request, insert_request
from server.credits.pricing import Pricing
from server.credits.stripe.client import StripeClient
from server.credits.stripe.invoices import Invoice, InvoiceStatus
from server.credits.top_ups.state_machine import TopUp, TopUpStatus, owner_of
from server.credits.top_ups.store import TopUpStore
from server.errors import DomainError, RetryLater, TopUpNotFound
from server.postgres.pool import Connection, Pool, acquire
from server.postgres.queries import load_queries

SQL = load_queries(__file__)

PERIOD = timedelta(days=35)
CREATED_BY = "restored"
"""Who ordered a restored top-up: nobody knows any more."""
_CLOCK_SKEW = timedelta(days=1)
_S = TopUpStatus

_AGREEING_STATUSES = {
    InvoiceStatus.DRAFT: {_S.CREATING, _S.CANCELING, _S.REVIEW, _S.RESOLVED},
    InvoiceStatus.OPEN: {_S.CREATING, _S.OPEN, _S.CANCELING, _S.REVIEW, _S.RESOLVED},
    InvoiceStatus.PAID: {_S.PAID, _S.REVIEW, _S.RESOLVED},
    InvoiceStatus.UNCOLLECTIBLE: {_S.UNCOLLECTIBLE, _S.CANCELING, _S.REVIEW, _S.RESOLVED},
    InvoiceStatus.VOID: {_S.CANCELED, _S.EXPIRED, _S.FAILED, _S.REVIEW, _S.RESOLVED},
}
"""The statuses that a top-up may have, by the status of its invoice."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One disagreement between Stripe and the top-ups, or one top-up that needs a person."""

    kind: str
    """A stable word, such as `status_differs`."""
    organization_id: str
    top_up_id: UUID
    invoice_id: str | None
    detail: str

    def __str__(self) -> str:
        return (
            f"{self.kind}: organization {self.organization_id}, top-up {self.top_up_id},"
            f" invoice {self.invoice_id or 'none'}: {self.detail}"
        )


@dataclass(frozen=True, slots=True)
class DriftReport:
    """The result of a comparison."""

    since: datetime
    invoices: int
    top_ups: int
    drifts: tuple[Drift, ...]
    """The disagreements."""
    attention: tuple[Drift, ...]
    """Top-ups, of any age, that need a person: those in REVIEW or with a flag that nobody has resolved."""

    @property
    def holds(self) -> bool:
        """True when there is no disagreement."""
        return not self.drifts

    def __str__(self) -> str:
        head = f"{self.invoices} invoices at Stripe and {self.top_ups} top-ups here since {self.since:%Y-%m-%d}"
        verdict = "all agree" if self.holds else f"{len(self.drifts)} do not agree"
        lines = [f"{head}: {verdict}", *map(str, self.drifts)]
        if self.attention:
            lines += [f"{len(self.attention)} need a person:", *map(str, self.attention)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Row:
    organization_id: str
    top_up_id: UUID
    status: str
    invoice_id: str | None
    total: Decimal
    failure_reason: str
    flags: list[str]
    resolved_flags: list[str]


@dataclass(frozen=True, slots=True)
class RestoredTopUps:
    """What Stripe's invoices brought."""

    restored: tuple[TopUp, ...]
    """The top-ups that were lost."""
    problems: tuple[str, ...]
    """A line for each invoice whose top-up is lost and was not restored: a person must decide."""


async def find_drift(pool: Pool, stripe_client: StripeClient, *, environment: str, now: datetime) -> DriftReport:
    """Compare the invoices and top-ups of the last 35 days.

    Compares a second time before it reports a disagreement, because a payment may have arrived between the two lists.
    Raises StripeCallError and DatabaseUnavailable.
    """
    since = now - PERIOD
    report = await _compare(pool, stripe_client, environment=environment, since=since)
    if report.holds:
        return report
    again = await _compare(pool, stripe_client, environment=environment, since=since)
    lasting = tuple(drift for drift in again.drifts if drift in report.drifts)
    return DriftReport(since, again.invoices, again.top_ups, lasting, again.attention)


async def restore_top_ups(
    store: TopUpStore, stripe_client: StripeClient, pricing: Pricing, *, since: datetime
) -> RestoredTopUps:
    """Apply Stripe's invoices that were created since then to their top-ups, and insert the top-ups that are lost.

    A paid one adds its credits, once: a repeat changes nothing. Changes nothing at Stripe. Raises StripeCallError and
    DatabaseUnavailable.
    """
    restored: list[TopUp] = []
    problems: list[str] = []
    # Oldest first: a later one was ordered once the earlier one had ended.
    for listed in reversed(await stripe_client.list_invoices(customer_id=None, since=since - _CLOCK_SKEW)):
        owner = owner_of(listed, store.terms.environment)
        if owner is None or listed.status is InvoiceStatus.VOID:
            continue
        invoice = await stripe_client.retrieve(listed.invoice_id)  # a list leaves out what a balance paid
        try:
            await store.apply_invoice(*owner, invoice)
        except TopUpNotFound:
            try:
                restored.append(await _insert(store, pricing, *owner, invoice))
            except RetryLater:
                raise
            except UniqueViolation:
                problems.append(
                    f"{owner[0]}: top-up {owner[1]}, invoice {invoice.invoice_id}, {invoice.status}: its request_id has"
                    " ordered another top-up since; correct with AdjustCredits"
                )
            except (ValueError, DomainError) as error:
                problems.append(
                    f"{owner[0]}: top-up {owner[1]}, invoice {invoice.invoice_id}, {invoice.status}: {error}"
                )
    return RestoredTopUps(tuple(restored), tuple(problems))


async def _compare(pool: Pool, stripe_client: StripeClient, *, environment: str, since: datetime) -> DriftReport:
    listed = await stripe_client.list_invoices(customer_id=None, since=since - _CLOCK_SKEW)
    owned = [(owner, invoice) for invoice in listed if (owner := owner_of(invoice, environment))]
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        cursor = await connection.execute(SQL.list_since, {"since": since})
        rows = [_Row(*row) for row in await cursor.fetchall()]
        cursor = await connection.execute(SQL.list_to_resolve)
        to_resolve = [_Row(*row) for row in await cursor.fetchall()]
    invoices = {invoice.invoice_id: invoice for _, invoice in owned}
    drifts = [drift for row in rows for drift in _drifts_of(row, invoices)]
    rows_by_id = {row.top_up_id: row for row in rows}
    drifts += [
        Drift("invoice_without_top_up", *owner, invoice.invoice_id, f"it is {invoice.status} at Stripe")
        for owner, invoice in owned
        if invoice.create_time >= since
        and invoice.status is not InvoiceStatus.VOID
        and (owner[1] not in rows_by_id or rows_by_id[owner[1]].invoice_id != invoice.invoice_id)
    ]
    attention = tuple(found for row in to_resolve for found in _attention_of(row))
    return DriftReport(since, len(owned), len(rows), tuple(drifts), attention)


def _drifts_of(row: _Row, invoices: dict[str, Invoice]) -> Iterator[Drift]:
    def drift(kind: str, detail: str) -> Drift:
        return Drift(kind, row.organization_id, row.top_up_id, row.invoice_id, detail)

    if row.invoice_id is None:
        return
    invoice = invoices.get(row.invoice_id)
    if invoice is None:
        # The draft of a canceled top-up is deleted; in these statuses the invoice was finalized and must exist.
        if row.status in {TopUpStatus.OPEN, TopUpStatus.PAID, TopUpStatus.UNCOLLECTIBLE}:
            yield drift("invoice_missing", f"it is {row.status} here")
        return
    if row.status not in _AGREEING_STATUSES[invoice.status]:
        yield drift("status_differs", f"it is {row.status} here and {invoice.status} at Stripe")
    if row.status == TopUpStatus.PAID and invoice.subtotal != row.total:
        yield drift("amount_differs", f"{row.total} was ordered and {invoice.subtotal} was invoiced")


def _attention_of(row: _Row) -> Iterator[Drift]:
    if row.status == TopUpStatus.REVIEW:
        yield Drift("review", row.organization_id, row.top_up_id, row.invoice_id, row.failure_reason)
    for flag in sorted(set(row.flags) - set(row.resolved_flags)):
        yield Drift(flag.lower(), row.organization_id, row.top_up_id, row.invoice_id, f"it is {row.status}")


async def _insert(
    store: TopUpStore, pricing: Pricing, organization_id: str, top_up_id: UUID, invoice: Invoice
) -> TopUp:
    """Insert the top-up of the invoice, as the invoice makes it, and its request.

    Raises ValueError or a DomainError when the invoice does not say what it buys, has another price than today's, or
    belongs to a second unpaid top-up.
    """
    if invoice.status is InvoiceStatus.DRAFT:
        raise ValueError("nobody can pay it; delete it at Stripe")
    if not (invoice.metadata.get("credits") and invoice.metadata.get("request_id")):
        raise ValueError("it does not say what it buys; correct with AdjustCredits")
    now, request_id = store.clock(), UUID(invoice.metadata["request_id"])
    is_automatic = invoice.metadata.get("automatic") == "true"
    quote = pricing.quote(credits=int(invoice.metadata["credits"]), currency_code=invoice.currency_code)
    if quote.total.amount != invoice.subtotal:
        raise ValueError("its credits have another price today; correct with AdjustCredits")
    lost = TopUp(
        organization_id=organization_id,
        top_up_id=top_up_id,
        status=TopUpStatus.CREATING,
        end_status=None,
        failure_reason="",
        flags=(),
        credits=quote.credits,
        currency_code=invoice.currency_code,
        unit_price=quote.unit_price.amount,
        total=quote.total.amount,
        created_by=CREATED_BY,
        create_time=invoice.create_time,
        stripe_parameters={},
        attempt=1,
        attempt_time=now,
        next_check_time=now,
        stripe_customer_id=invoice.customer_id,
        due_time=invoice.create_time + timedelta(days=store.terms.days_until_due) if is_automatic else None,
        is_automatic=is_automatic,
    )

    async def insert_beside(connection: Connection) -> None:
        values = {"organization_id": organization_id, "stripe_customer_id": invoice.customer_id}
        await connection.execute(SQL.set_missing_customer, values)
        # Without a fingerprint: its request_id and rpc alone say what repeats it.
        request = Request("CreateTopUp", b"", top_up_id)
        await insert_request(connection, (organization_id, request_id), request, now=now)

    return await store.apply_invoice(organization_id, top_up_id, invoice, lost=lost, in_transaction=insert_beside)
