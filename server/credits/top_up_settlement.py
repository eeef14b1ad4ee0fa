"""The rule of the money: what a top-up becomes when its invoice at Stripe is as it is. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from server.credits.top_up_rows import TopUp
from server.credits.top_up_states import PAYABLE, TopUpStatus
from server.payments.invoices import Invoice, InvoiceStatus


class Flag(StrEnum):
    """What happened to a top-up besides its status and needs a person. AdjustCredits is that person's tool."""

    REFUNDED = "REFUNDED"
    DISPUTED = "DISPUTED"
    OVERPAID = "OVERPAID"
    CREDIT_NOTE = "CREDIT_NOTE"
    SECOND_INVOICE = "SECOND_INVOICE"


@dataclass(frozen=True, slots=True)
class TopUpTerms:
    """How this deployment sells; from the settings."""

    environment: str
    """Tells this deployment's invoices from those of others in the same Stripe account."""
    livemode: bool
    days_until_due: int = 7
    expire_grace: timedelta = timedelta(days=1)
    """How long after its due time an unpaid invoice is voided."""
    trust_out_of_band: bool = False
    """Credit what a person marked as paid in Stripe's dashboard, without money through Stripe."""
    payment_method_types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By currency code."""
    lease: timedelta = timedelta(seconds=60)
    """How long a worker may be silent before another takes over; more than a whole Stripe call takes."""
    key_lifetime: timedelta = timedelta(hours=23)
    """Stripe keeps idempotency keys for 24 hours."""


def decide(top_up: TopUp, invoice: Invoice, terms: TopUpTerms, *, now: datetime) -> TopUp:
    """The top-up as it must be, the invoice being as it is now. PAID means: credit it.

    Never leaves PAID or REVIEW. A repeat, and an invoice seen earlier than the last one, change no status.
    """
    top_up = _with_facts(top_up, invoice, now=now)
    if top_up.status in {TopUpStatus.PAID, TopUpStatus.REVIEW}:
        return top_up
    match invoice.status:
        case InvoiceStatus.PAID:
            return _paid(top_up, invoice, terms, now=now)
        case InvoiceStatus.VOID:
            return _voided(top_up, now=now)
        case InvoiceStatus.UNCOLLECTIBLE if top_up.status in {TopUpStatus.CREATING, TopUpStatus.OPEN}:
            return _moved(top_up, TopUpStatus.UNCOLLECTIBLE)
        case InvoiceStatus.OPEN if top_up.status is TopUpStatus.CREATING:
            return _opened(top_up, invoice, terms)
        case _:
            return top_up


def owner_of(invoice: Invoice, environment: str) -> tuple[str, UUID] | None:
    """The organization and the top-up that an invoice was made for; None for one that this deployment did not make."""
    metadata = invoice.metadata
    if metadata.get("environment") != environment or not metadata.get("organization_id"):
        return None
    try:
        return metadata["organization_id"], UUID(metadata["top_up_id"])
    except (KeyError, ValueError):
        return None


def end(top_up: TopUp, *, now: datetime) -> TopUp:
    """A CANCELING top-up whose invoice nobody can pay any more, as it was meant to end."""
    if top_up.end_status is None:
        raise ValueError("only a top-up that is CANCELING knows how it ends")
    ended = _moved(top_up, top_up.end_status, reason=top_up.failure_reason)
    return replace(ended, cancel_time=now if ended.status in {TopUpStatus.CANCELED, TopUpStatus.EXPIRED} else None)


def cancel(top_up: TopUp, end_status: TopUpStatus, *, reason: str = "") -> TopUp:
    """The top-up on its way to void its invoice and then to be in end_status."""
    return replace(top_up, status=TopUpStatus.CANCELING, end_status=end_status, failure_reason=reason)


def _paid(top_up: TopUp, invoice: Invoice, terms: TopUpTerms, *, now: datetime) -> TopUp:
    reason = _mismatch(top_up, invoice, terms) or _missing_money(top_up, invoice, terms)
    if reason:
        return replace(_moved(top_up, TopUpStatus.REVIEW, reason=reason), cancel_time=None)
    return replace(_moved(top_up, TopUpStatus.PAID), paid_time=now, cancel_time=None)


def _opened(top_up: TopUp, invoice: Invoice, terms: TopUpTerms) -> TopUp:
    reason = _mismatch(top_up, invoice, terms)
    if not reason and invoice.amount_due != invoice.total:
        reason = "amount_due_mismatch"
    if reason:
        return cancel(top_up, TopUpStatus.REVIEW, reason=reason)
    return replace(_moved(top_up, TopUpStatus.OPEN), invoice_total=invoice.total)


def _voided(top_up: TopUp, *, now: datetime) -> TopUp:
    if top_up.status is TopUpStatus.CANCELING:
        return end(top_up, now=now)
    if top_up.status is TopUpStatus.CREATING:
        return _moved(top_up, TopUpStatus.FAILED, reason="invoice_voided")
    if top_up.status in PAYABLE:
        return replace(_moved(top_up, TopUpStatus.CANCELED), cancel_time=now)
    return top_up


def _mismatch(top_up: TopUp, invoice: Invoice, terms: TopUpTerms) -> str:
    """Why this invoice is not the one that was ordered; empty when it is. Tax may be added, nothing taken off."""
    checks = {
        "livemode_mismatch": invoice.livemode == terms.livemode,
        "customer_mismatch": invoice.customer_id == top_up.stripe_customer_id,
        "currency_mismatch": invoice.currency_code == top_up.currency_code,
        "amount_mismatch": invoice.subtotal == top_up.total,
        "total_mismatch": invoice.total >= invoice.subtotal and invoice.discount == 0,
        "total_changed": top_up.invoice_total in {None, invoice.total},
        "customer_balance_applied": invoice.starting_balance == 0,
    }
    return next((word for word, holds in checks.items() if not holds), "")


def _missing_money(top_up: TopUp, invoice: Invoice, terms: TopUpTerms) -> str:
    """Why a paid invoice is no proof that money came; empty when it is."""
    checks = {
        "credit_note": invoice.amount_credited == 0,
        "amount_not_paid": invoice.amount_paid >= invoice.total,
        "paid_out_of_band": terms.trust_out_of_band or invoice.paid_through_stripe >= invoice.total,
        "refunded": Flag.REFUNDED not in top_up.flags,
        "disputed": Flag.DISPUTED not in top_up.flags,
    }
    return next((word for word, holds in checks.items() if not holds), "")


def _with_facts(top_up: TopUp, invoice: Invoice, *, now: datetime) -> TopUp:
    flags = dict.fromkeys(top_up.flags)
    if invoice.amount_overpaid > 0:
        flags[Flag.OVERPAID] = None
    if invoice.amount_credited > 0:
        flags[Flag.CREDIT_NOTE] = None
    top_up = replace(top_up, flags=tuple(flags), stripe_invoice_id=invoice.invoice_id)
    if not invoice.number:
        return top_up
    return replace(
        top_up,
        invoice_number=invoice.number,
        hosted_invoice_url=invoice.hosted_invoice_url,
        invoice_pdf_url=invoice.invoice_pdf_url,
        links_fetch_time=now,
        due_time=invoice.due_time,
    )


def _moved(top_up: TopUp, status: TopUpStatus, *, reason: str = "") -> TopUp:
    return replace(top_up, status=status, end_status=None, failure_reason=reason)
