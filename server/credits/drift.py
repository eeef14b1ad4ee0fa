"""Compares Stripe's invoices with our top-ups, both ways. That top-ups agree with the ledger is what `audit` proves."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from server.credits.top_up_settlement import owner_of
from server.credits.top_up_states import TopUpStatus
from server.database.pool import Pool, connection
from server.database.queries import load_queries
from server.payments.client import Payments
from server.payments.invoices import Invoice, InvoiceStatus

SQL = load_queries(__file__)

PERIOD = timedelta(days=35)
_CLOCK_DIFFERENCE = timedelta(days=1)
_S = TopUpStatus

AGREEING = {
    InvoiceStatus.DRAFT: {_S.CREATING, _S.CANCELING, _S.REVIEW},
    InvoiceStatus.OPEN: {_S.CREATING, _S.OPEN, _S.CANCELING, _S.REVIEW},
    InvoiceStatus.PAID: {_S.PAID, _S.REVIEW},
    InvoiceStatus.UNCOLLECTIBLE: {_S.UNCOLLECTIBLE, _S.CANCELING, _S.REVIEW},
    InvoiceStatus.VOID: {_S.CANCELED, _S.EXPIRED, _S.FAILED, _S.REVIEW},
}
"""The states that a top-up may have while its invoice has this one."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing on which Stripe and the top-ups do not agree, or that waits for a person."""

    kind: str
    """A stable word."""
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
    """What a comparison found."""

    since: datetime
    invoices: int
    top_ups: int
    drifts: tuple[Drift, ...]
    """What does not agree."""
    attention: tuple[Drift, ...]
    """What agrees, and a person must look at."""

    @property
    def holds(self) -> bool:
        """True when everything agrees."""
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


async def find_drift(pool: Pool, payments: Payments, *, environment: str, now: datetime) -> DriftReport:
    """Compare the last 35 days. What is on its way while it looks is looked at again before it is reported.

    Raises PaymentsError and DatabaseUnavailable.
    """
    since = now - PERIOD
    report = await _compare(pool, payments, environment=environment, since=since)
    if report.holds:
        return report
    # A payment that arrived between the two lists is no drift: what is one is there the second time as well.
    again = await _compare(pool, payments, environment=environment, since=since)
    lasting = tuple(drift for drift in again.drifts if drift in report.drifts)
    return DriftReport(since, again.invoices, again.top_ups, lasting, again.attention)


async def _compare(pool: Pool, payments: Payments, *, environment: str, since: datetime) -> DriftReport:
    listed = await payments.list_invoices(customer_id=None, since=since - _CLOCK_DIFFERENCE)
    owned = [(owner, invoice) for invoice in listed if (owner := owner_of(invoice, environment))]
    async with connection(pool) as lent:
        cursor = await lent.execute(SQL.list_since, {"since": since})
        rows = [_Row(*row) for row in await cursor.fetchall()]
    invoices = {invoice.invoice_id: invoice for _, invoice in owned}
    drifts = [drift for row in rows for drift in _drifts_of(row, invoices)]
    known = {row.top_up_id: row for row in rows}
    drifts += [
        Drift("invoice_without_top_up", *owner, invoice.invoice_id, f"it is {invoice.status} at Stripe")
        for owner, invoice in owned
        if invoice.create_time >= since
        and invoice.status is not InvoiceStatus.VOID
        and (owner[1] not in known or known[owner[1]].invoice_id != invoice.invoice_id)
    ]
    attention = tuple(found for row in rows for found in _attention_of(row))
    return DriftReport(since, len(owned), len(rows), tuple(drifts), attention)


def _drifts_of(row: _Row, invoices: dict[str, Invoice]) -> Iterator[Drift]:
    def drift(kind: str, detail: str) -> Drift:
        return Drift(kind, row.organization_id, row.top_up_id, row.invoice_id, detail)

    if row.invoice_id is None:
        return
    invoice = invoices.get(row.invoice_id)
    if invoice is None:
        # A draft that was given up is deleted; anything later leaves an invoice behind.
        if row.status in {TopUpStatus.OPEN, TopUpStatus.PAID, TopUpStatus.UNCOLLECTIBLE}:
            yield drift("invoice_missing", f"it is {row.status} here")
        return
    if row.status not in AGREEING[invoice.status]:
        yield drift("status_differs", f"it is {row.status} here and {invoice.status} at Stripe")
    if row.status == TopUpStatus.PAID and invoice.subtotal != row.total:
        yield drift("amount_differs", f"{row.total} was ordered and {invoice.subtotal} invoiced")


def _attention_of(row: _Row) -> Iterator[Drift]:
    if row.status == TopUpStatus.REVIEW:
        yield Drift("review", row.organization_id, row.top_up_id, row.invoice_id, row.failure_reason)
    for flag in row.flags:
        yield Drift(flag.lower(), row.organization_id, row.top_up_id, row.invoice_id, f"it is {row.status}")
