"""The state machine of a top-up: its statuses, the transitions between them, and what an invoice makes of it.

Functions here are pure: they take a TopUp and return the changed one. `store` commits it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from server.credits.accounts import RequestMemory
from server.credits.pricing import CURRENCIES
from server.credits.stripe.invoices import AutomaticTax, CustomerBalance, Invoice, InvoiceStatus, TaxRate
from server.errors import TopUpNotResolvable


class TopUpStatus(StrEnum):
    """The status of a top-up; pulsa.credit.v1.TopUpStatus defines each for callers."""

    CREATING = "CREATING"
    OPEN = "OPEN"
    CANCELING = "CANCELING"
    PAID = "PAID"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"
    UNCOLLECTIBLE = "UNCOLLECTIBLE"
    REVIEW = "REVIEW"
    FAILED = "FAILED"
    RESOLVED = "RESOLVED"


class TopUpFlag(StrEnum):
    """What happened to a top-up besides its status and needs a person, who ends it with ResolveTopUp.

    pulsa.credit.v1.TopUp.flags defines each for callers.
    """

    REFUNDED = "REFUNDED"
    DISPUTED = "DISPUTED"
    OVERPAID = "OVERPAID"
    CREDIT_NOTE = "CREDIT_NOTE"
    SECOND_INVOICE = "SECOND_INVOICE"
    PARTLY_PAID = "PARTLY_PAID"
    VOID_REFUSED = "VOID_REFUSED"
    LATE_PAYMENT = "LATE_PAYMENT"


_S = TopUpStatus

TRANSITIONS: Mapping[TopUpStatus, frozenset[TopUpStatus]] = {
    _S.CREATING: frozenset({_S.OPEN, _S.PAID, _S.CANCELING, _S.UNCOLLECTIBLE, _S.REVIEW, _S.FAILED, _S.RESOLVED}),
    _S.OPEN: frozenset({_S.PAID, _S.CANCELING, _S.CANCELED, _S.UNCOLLECTIBLE, _S.REVIEW, _S.RESOLVED}),
    # Back to OPEN when a part is paid: then the invoice is not voided.
    _S.CANCELING: frozenset({_S.PAID, _S.OPEN, _S.CANCELED, _S.EXPIRED, _S.REVIEW, _S.FAILED, _S.RESOLVED}),
    _S.UNCOLLECTIBLE: frozenset({_S.PAID, _S.CANCELED, _S.REVIEW, _S.RESOLVED}),
    # Payment wins over every end: a payment that Stripe reports for an ended top-up is still credited.
    _S.CANCELED: frozenset({_S.PAID, _S.REVIEW, _S.RESOLVED}),
    _S.EXPIRED: frozenset({_S.PAID, _S.REVIEW, _S.RESOLVED}),
    _S.FAILED: frozenset({_S.PAID, _S.REVIEW, _S.RESOLVED}),
    _S.PAID: frozenset(),
    _S.REVIEW: frozenset({_S.RESOLVED}),
    _S.RESOLVED: frozenset(),
}
"""Every allowed change of status; a person's decision makes RESOLVED. The docs' diagram is made from it."""

IN_WORK = frozenset({_S.CREATING, _S.CANCELING})
"""Calls to Stripe are pending; after a crash a worker must continue them."""

UNFINISHED = IN_WORK | {_S.OPEN}
"""An organization has at most one top-up in these; a partial unique index enforces it."""

PAYABLE = frozenset({_S.OPEN, _S.UNCOLLECTIBLE})
"""The invoice can be paid at any time; it is polled at Stripe, in case a webhook is lost."""


@dataclass(frozen=True, slots=True)
class TopUp:
    """One purchase of credits through one Stripe invoice."""

    organization_id: str
    top_up_id: UUID
    status: TopUpStatus
    end_status: TopUpStatus | None
    """The status after CANCELING, unless the invoice is paid first; None in every other status."""
    failure_reason: str
    """A stable word, set in FAILED and REVIEW and in a CANCELING that leads to one of them; empty otherwise."""
    flags: tuple[str, ...]
    """Values of TopUpFlag."""
    credits: int
    currency_code: str
    unit_price: Decimal
    total: Decimal
    """Before tax."""
    created_by: str
    create_time: datetime
    stripe_parameters: dict[str, Any]
    """The parameters of its Stripe calls, from `invoice_parameters` of server.credits.stripe.invoices."""
    attempt: int
    """Part of the idempotency keys. Incremented only after the results of the previous attempt were looked up."""
    attempt_time: datetime
    next_check_time: datetime
    """No worker claims it before this time."""
    stripe_customer_id: str | None = None
    stripe_invoice_id: str | None = None
    invoice_number: str = ""
    invoice_total: Decimal | None = None
    """The invoice's total including tax; set once it is OPEN."""
    tax: Decimal | None = None
    """The tax that invoice_total includes; set once it is OPEN."""
    amount_paid: Decimal = Decimal(0)
    """What was paid for the invoice, with what it took of a customer balance that was paid earlier."""
    amount_remaining: Decimal | None = None
    """What is left to pay; None until the invoice is finalized."""
    hosted_invoice_url: str = ""
    invoice_pdf_url: str = ""
    links_fetch_time: datetime | None = None
    due_time: datetime | None = None
    paid_time: datetime | None = None
    cancel_time: datetime | None = None
    lease_expire_time: datetime | None = None
    """When the worker's lease ends; None when no worker holds one."""
    is_frozen: bool = False
    """Its payment is disputed, and its credits were taken back as far as they were left."""
    frozen_credits: int = 0
    """The credits that were taken back and not returned."""
    resolved_credits: int = 0
    """Credits that persons added when they resolved it."""
    resolved_flags: tuple[str, ...] = ()
    """The flags that a person has dealt with."""
    resolve_time: datetime | None = None
    """Of the last resolution, as are the three below."""
    resolve_request_id: UUID | None = None
    resolve_reason: str = ""
    resolved_by: str = ""
    is_automatic: bool = False
    """Ordered by itself, and charged to the saved card."""
    charge_time: datetime | None = None
    """When the card is charged next; None: it is not."""


@dataclass(frozen=True, slots=True)
class TopUpTerms:
    """The settings of this deployment's top-ups."""

    environment: str
    """Marks this deployment's invoices among those of other deployments in the same Stripe account."""
    livemode: bool
    days_until_due: int = 7
    expire_grace: timedelta = timedelta(days=1)
    """The time between an invoice's due time and voiding it unpaid."""
    trust_out_of_band: bool = False
    """Credit an invoice that a person marked as paid in Stripe's dashboard, without a payment through Stripe."""
    payment_method_types: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Stripe payment method types by currency code."""
    tax_rates: Mapping[str, TaxRate] = field(default_factory=dict)
    """The tax of invoices by currency code; a currency without one has no tax, or automatic_tax."""
    automatic_tax: AutomaticTax | None = None
    freeze_disputed: bool = False
    """Take the credits of a disputed payment back, as far as they are left, until the dispute is won."""
    charge_failures: int = 3
    """Failed charges in a row that switch automatic top-ups off."""
    charge_pause: timedelta = timedelta(hours=4)
    """From a failed charge to the next; twice as long after each further one."""
    lease: timedelta = timedelta(seconds=60)
    """The time after a worker's last step until another may take over; longer than one Stripe call takes."""
    key_lifetime: timedelta = timedelta(hours=23)
    """How long a key is reused. Stripe keeps idempotency keys for 24 hours."""
    memory: RequestMemory = field(default_factory=RequestMemory)
    """Which requests are not known any more: a new purchase that may be one of them is refused."""


def decide(top_up: TopUp, invoice: Invoice, terms: TopUpTerms, *, now: datetime) -> TopUp:
    """Return the top-up that follows from its invoice; when it becomes PAID, the caller adds its credits.

    Never leaves PAID, REVIEW or RESOLVED. Applying the same invoice again, or an older version of it, changes no
    status.
    """
    top_up = _with_invoice_fields(top_up, invoice, now=now)
    if top_up.status in {TopUpStatus.PAID, TopUpStatus.REVIEW, TopUpStatus.RESOLVED}:
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
    """The organization_id and top_up_id in an invoice's metadata; None for an invoice of another origin."""
    metadata = invoice.metadata
    if metadata.get("environment") != environment or not metadata.get("organization_id"):
        return None
    try:
        return metadata["organization_id"], UUID(metadata["top_up_id"])
    except (KeyError, ValueError):
        return None


def step_key(top_up: TopUp, step: str) -> str:
    """The idempotency key of a step at Stripe: the same for every call of one attempt."""
    return f"top-up:{top_up.top_up_id}:{step}:{top_up.attempt}"


def start_canceling(top_up: TopUp, end_status: TopUpStatus, *, reason: str = "") -> TopUp:
    """Move a top-up to CANCELING: its invoice is to be voided, and then it gets end_status."""
    return replace(top_up, status=TopUpStatus.CANCELING, end_status=end_status, failure_reason=reason)


def finish_canceling(top_up: TopUp, *, now: datetime) -> TopUp:
    """Move a CANCELING top-up, whose invoice can no longer be paid, to its end_status.

    Raises ValueError for a top-up in another status.
    """
    if top_up.end_status is None:
        raise ValueError("only a CANCELING top-up has an end_status")
    ended = _moved(top_up, top_up.end_status, reason=top_up.failure_reason)
    return replace(ended, cancel_time=now if ended.status in {TopUpStatus.CANCELED, TopUpStatus.EXPIRED} else None)


def review_payment(top_up: TopUp, reason: str) -> TopUp:
    """Move a top-up that has just become PAID to REVIEW: its credits cannot be added."""
    return replace(_moved(top_up, TopUpStatus.REVIEW, reason=reason), paid_time=None)


def keep_partly_paid(top_up: TopUp) -> TopUp:
    """End the canceling of a top-up of whose invoice a part is paid: it is OPEN again, or in REVIEW.

    Changes nothing in another status.
    """
    if top_up.status is not TopUpStatus.CANCELING:
        return top_up
    if top_up.end_status in {TopUpStatus.CANCELED, TopUpStatus.EXPIRED}:
        return _moved(top_up, TopUpStatus.OPEN)
    return _moved(top_up, TopUpStatus.REVIEW, reason=top_up.failure_reason)


def with_flags(top_up: TopUp, flags: Mapping[TopUpFlag, bool]) -> TopUp:
    """Set the flags whose value is True and clear the others. A flag that is set anew needs a person again."""
    kept = [flag for flag in top_up.flags if flags.get(TopUpFlag(flag), True)]
    new = tuple(dict.fromkeys([*kept, *(flag.value for flag, is_set in flags.items() if is_set)]))
    return replace(top_up, flags=new, resolved_flags=tuple(flag for flag in top_up.resolved_flags if flag in new))


@dataclass(frozen=True, slots=True)
class Resolution:
    """A person's decision about a top-up that needs one."""

    request_id: UUID
    credits: int
    """Added to the balance; 0 closes it."""
    reason: str
    resolved_by: str


def resolve(top_up: TopUp, resolution: Resolution, *, now: datetime) -> TopUp:
    """Return the top-up after a person's decision; the caller adds the credits.

    It becomes RESOLVED, unless it is PAID or only a flag was dealt with while it goes on. Raises TopUpNotResolvable
    when it needs nobody, or for more credits than it has left to add.
    """
    most = (
        0 if top_up.status is TopUpStatus.PAID else top_up.credits - top_up.resolved_credits
    ) + top_up.frozen_credits
    is_needed = top_up.status is TopUpStatus.REVIEW or set(top_up.flags) - set(top_up.resolved_flags)
    if not is_needed or resolution.credits > most:
        raise TopUpNotResolvable(status=top_up.status.value, maximum_credits=most if is_needed else 0)
    ends = top_up.status is TopUpStatus.REVIEW or TopUpFlag.PARTLY_PAID in top_up.flags or resolution.credits > 0
    if ends and top_up.status not in {TopUpStatus.PAID, TopUpStatus.RESOLVED}:
        moved = _moved(top_up, TopUpStatus.RESOLVED, reason=top_up.failure_reason)
        top_up = replace(moved, cancel_time=None)
    unfrozen = min(top_up.frozen_credits, resolution.credits)
    return replace(
        top_up,
        frozen_credits=top_up.frozen_credits - unfrozen,
        resolved_credits=top_up.resolved_credits + resolution.credits - unfrozen,
        resolved_flags=top_up.flags,
        resolve_time=now,
        resolve_request_id=resolution.request_id,
        resolve_reason=resolution.reason,
        resolved_by=resolution.resolved_by,
    )


BALANCE_REASONS = frozenset({"customer_owes", "customer_balance_not_paid", "rest_below_minimum_charge"})
"""Why a top-up is FAILED without an invoice: the customer's balance must be settled at Stripe first."""


def balance_objection(top_up: TopUp, balance: CustomerBalance) -> str:
    """Why no invoice may be made while the customer has this balance, of BALANCE_REASONS; empty when it may.

    An invoice takes the balance by itself. Credit that was paid counts as payment; any other would be gone, or would
    buy credits for nothing.
    """
    rest = top_up.total + _added_tax(top_up) - balance.credit
    checks = {
        "customer_owes": balance.credit >= 0,
        "customer_balance_not_paid": balance.is_money,
        "rest_below_minimum_charge": rest <= 0 or rest >= CURRENCIES[top_up.currency_code].minimum_charge,
    }
    return next((reason for reason, holds in checks.items() if not holds), "")


def tax_objection(top_up: TopUp, invoice: Invoice) -> str:
    """Why the tax of the invoice is not that of the order; empty when it is, and when the order names none.

    Stripe's rounding may differ by the smallest amount that can be charged.
    """
    tax = top_up.stripe_parameters.get("tax") or {}
    if "amount" in tax:
        difference = abs(invoice.tax - Decimal(tax["amount"]))
        return "" if difference <= CURRENCIES[top_up.currency_code].charge_unit else "tax_mismatch"
    return "tax_not_computed" if tax.get("automatic") and not invoice.has_automatic_tax else ""


def _added_tax(top_up: TopUp) -> Decimal:
    tax = top_up.stripe_parameters.get("tax") or {}
    return Decimal(0) if tax.get("inclusive") else Decimal(tax.get("amount", 0))


def _paid(top_up: TopUp, invoice: Invoice, terms: TopUpTerms, *, now: datetime) -> TopUp:
    reason = _mismatch(top_up, invoice, terms) or _missing_money(top_up, invoice, terms)
    if reason:
        return replace(_moved(top_up, TopUpStatus.REVIEW, reason=reason), cancel_time=None)
    paid = _moved(top_up, TopUpStatus.PAID)
    return replace(paid, paid_time=now, cancel_time=None, invoice_total=invoice.total, tax=invoice.tax)


def _opened(top_up: TopUp, invoice: Invoice, terms: TopUpTerms) -> TopUp:
    reason = _mismatch(top_up, invoice, terms)
    if not reason and invoice.amount_due != invoice.total - invoice.balance_applied:
        reason = "amount_due_mismatch"
    if reason:
        return start_canceling(top_up, TopUpStatus.REVIEW, reason=reason)
    return replace(_moved(top_up, TopUpStatus.OPEN), invoice_total=invoice.total, tax=invoice.tax)


def _voided(top_up: TopUp, *, now: datetime) -> TopUp:
    if top_up.status is TopUpStatus.CANCELING:
        return finish_canceling(top_up, now=now)
    if top_up.status is TopUpStatus.CREATING:
        return _moved(top_up, TopUpStatus.FAILED, reason="invoice_voided")
    if top_up.status in PAYABLE:
        return replace(_moved(top_up, TopUpStatus.CANCELED), cancel_time=now)
    return top_up


def _mismatch(top_up: TopUp, invoice: Invoice, terms: TopUpTerms) -> str:
    """The reason why the invoice differs from the order; empty when it matches. Only tax may be added."""
    checks = {
        "livemode_mismatch": invoice.livemode == terms.livemode,
        "customer_mismatch": invoice.customer_id == top_up.stripe_customer_id,
        "currency_mismatch": invoice.currency_code == top_up.currency_code,
        "amount_mismatch": invoice.subtotal == top_up.total,
        "total_mismatch": invoice.total >= invoice.subtotal and invoice.discount == 0,
        "total_changed": top_up.invoice_total in {None, invoice.total},
        "customer_balance_applied": invoice.starting_balance <= 0 and invoice.balance_applied == invoice.balance_money,
    }
    return next((reason for reason, holds in checks.items() if not holds), "") or tax_objection(top_up, invoice)


def _missing_money(top_up: TopUp, invoice: Invoice, terms: TopUpTerms) -> str:
    """The reason why a PAID invoice does not prove a payment through Stripe; empty when it does."""
    checks = {
        "credit_note": invoice.amount_credited == 0,
        "amount_not_paid": invoice.amount_paid + invoice.balance_money >= invoice.total,
        "paid_out_of_band": terms.trust_out_of_band
        or invoice.paid_through_stripe + invoice.balance_money >= invoice.total,
        "refunded": TopUpFlag.REFUNDED not in top_up.flags,
        "disputed": TopUpFlag.DISPUTED not in top_up.flags,
    }
    return next((reason for reason, holds in checks.items() if not holds), "")


def _with_invoice_fields(top_up: TopUp, invoice: Invoice, *, now: datetime) -> TopUp:
    """Copy the invoice's id, number, amounts, URLs and due time, and set the flags that its amounts show."""
    if top_up.status is TopUpStatus.PAID and invoice.status is not InvoiceStatus.PAID:
        return top_up  # an older version
    amount_paid = invoice.amount_paid + invoice.balance_money
    flags = {TopUpFlag.PARTLY_PAID: invoice.amount_paid > 0 and invoice.status is not InvoiceStatus.PAID}
    if invoice.status not in {InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE}:
        flags[TopUpFlag.VOID_REFUSED] = False
    seen = {
        TopUpFlag.OVERPAID: invoice.amount_overpaid > 0,
        TopUpFlag.CREDIT_NOTE: invoice.amount_credited > 0,
    }
    if top_up.status is TopUpStatus.RESOLVED and amount_paid > top_up.amount_paid:
        seen[TopUpFlag.LATE_PAYMENT] = True
        top_up = with_flags(top_up, {TopUpFlag.LATE_PAYMENT: False})
    top_up = with_flags(top_up, flags | {flag: True for flag, is_seen in seen.items() if is_seen})
    top_up = replace(top_up, stripe_invoice_id=invoice.invoice_id)
    if not invoice.number:
        return top_up
    return replace(
        top_up,
        amount_paid=amount_paid,
        amount_remaining=invoice.amount_remaining,
        invoice_number=invoice.number,
        hosted_invoice_url=invoice.hosted_invoice_url,
        invoice_pdf_url=invoice.invoice_pdf_url,
        links_fetch_time=now,
        due_time=invoice.due_time or top_up.due_time,  # an invoice that is charged has none
    )


def _moved(top_up: TopUp, status: TopUpStatus, *, reason: str = "") -> TopUp:
    return replace(top_up, status=status, end_status=None, failure_reason=reason)
