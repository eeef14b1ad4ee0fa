"""The worker of top-ups: it holds a top-up's lease and runs its missing steps at Stripe, one after another.

The steps of a CREATING top-up: customer, invoice (a draft), item, finalize. A CANCELING one: delete the draft, or void
the invoice. An OPEN one that is automatic is charged when that is due. Each Stripe call stands between two commits, so
that after a crash the work resumes at the missing step.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from server.credits.accounts import read_accounts
from server.credits.stripe.client import StripeClient
from server.credits.stripe.errors import (
    IdempotencyKeySpent,
    StripeCallError,
    StripeNotFound,
    StripeRefused,
    StripeUnavailable,
)
from server.credits.stripe.invoices import Invoice, InvoiceStatus
from server.credits.top_ups.charges import Charges
from server.credits.top_ups.state_machine import (
    IN_WORK,
    PAYABLE,
    TopUp,
    TopUpFlag,
    TopUpStatus,
    balance_objection,
    finish_canceling,
    keep_partly_paid,
    owner_of,
    start_canceling,
    step_key,
    tax_objection,
)
from server.credits.top_ups.store import TopUpStore, has_returned_overpayment
from server.postgres.pool import acquire

_log = structlog.get_logger(__name__)

_MAXIMUM_STEPS = 12
"""Upper bound of steps per claim, so that a top-up that Stripe keeps refusing cannot loop; more than a run needs."""
_SOONEST_CHECK, _LATEST_CHECK = timedelta(seconds=5), timedelta(minutes=5)
_UNCOLLECTIBLE_CHECK = timedelta(hours=1)
_CLOCK_SKEW = timedelta(days=1)
_STILL_PAYABLE = frozenset({InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE})
# Of several invoices the first in this order is kept: a paid one before a payable one before a draft.
_KEEP_ORDER = [InvoiceStatus.PAID, InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE, InvoiceStatus.DRAFT]

StepResult = tuple[TopUp, Invoice | None]
"""The top-up as the step committed it, and its invoice if the step has Stripe's current version of it."""


class TopUpWorker:
    """Advances top-ups as far as Stripe's answers allow. Two workers on one top-up are safe: steps are idempotent."""

    def __init__(self, store: TopUpStore, stripe_client: StripeClient) -> None:
        self._store = store
        self._stripe = stripe_client
        self._steps = TopUpSteps(store, stripe_client)
        self._charges = Charges(store, stripe_client)

    async def advance(self, organization_id: str, top_up_id: UUID) -> TopUp | None:
        """Claim the top-up, run its steps and release it; returns the released top-up.

        Returns None when another worker holds the lease or the top-up is not due. A step that fails at Stripe is left
        to a later call.
        """
        claimed = await self._claim(organization_id, top_up_id)
        while claimed is not None:
            released = await self._release(await self._work(claimed))
            if released.lease_expire_time is None:
                return released
            # A cancel meanwhile set it to CANCELING, saw the lease and left the work to this worker.
            claimed = released
        return None

    async def _claim(self, organization_id: str, top_up_id: UUID) -> TopUp | None:
        now, is_free = self._store.clock(), False

        def edit(row: TopUp) -> TopUp:
            nonlocal is_free
            is_free = (
                row.status in IN_WORK | PAYABLE
                and row.next_check_time <= now
                and (row.lease_expire_time is None or row.lease_expire_time <= now)
            )
            return self._steps.renew_lease(row) if is_free else row

        claimed = await self._store.change(organization_id, top_up_id, edit, point="claim")
        return claimed if is_free else None

    async def _release(self, top_up: TopUp) -> TopUp:
        def edit(row: TopUp) -> TopUp:
            if row.status in IN_WORK and row.status is not top_up.status:
                return self._steps.renew_lease(row)
            return replace(row, lease_expire_time=None, next_check_time=_next_check_time(row, self._store.clock()))

        return await self._store.change(top_up.organization_id, top_up.top_up_id, edit, point="release")

    async def _work(self, top_up: TopUp) -> TopUp:
        """Run steps until none is missing, Stripe fails, or the upper bound is reached."""
        invoice: Invoice | None = None
        try:
            if top_up.status in PAYABLE:
                top_up = await self._check_payment(top_up)
            for _ in range(_MAXIMUM_STEPS):
                if top_up.status not in IN_WORK:
                    break
                top_up, invoice = await self._steps.run_next(top_up, invoice)
            if top_up.is_automatic and self._charges.is_due(top_up):
                top_up = await self._charges.charge(top_up)
        except StripeCallError as error:
            why = error.reason
            _log.warning("top-up waits for Stripe", top_up_id=str(top_up.top_up_id), status=top_up.status, why=why)
        return top_up

    async def _check_payment(self, top_up: TopUp) -> TopUp:
        """Retrieve and apply the invoice; if it is unpaid beyond its due time and expire_grace, start to void it."""
        invoice = await self._stripe.retrieve(str(top_up.stripe_invoice_id))
        top_up = await self._store.apply_invoice(top_up.organization_id, top_up.top_up_id, invoice)

        def edit(row: TopUp) -> TopUp:
            late = row.due_time and row.due_time + self._store.terms.expire_grace <= self._store.clock()
            expires = late and row.status is TopUpStatus.OPEN and TopUpFlag.PARTLY_PAID not in row.flags
            return start_canceling(row, TopUpStatus.EXPIRED) if expires else row

        if edit(top_up) is top_up:
            return top_up
        return await self._store.change(top_up.organization_id, top_up.top_up_id, edit, point="expire")


class TopUpSteps:
    """The steps of a top-up that is CREATING or CANCELING. Each makes one or two Stripe calls and commits."""

    def __init__(self, store: TopUpStore, stripe_client: StripeClient) -> None:
        self._store = store
        self._stripe = stripe_client

    def renew_lease(self, row: TopUp) -> TopUp:
        """Set the row's lease to begin now."""
        return replace(row, lease_expire_time=self._store.clock() + self._store.terms.lease)

    async def run_next(self, top_up: TopUp, invoice: Invoice | None) -> StepResult:
        """Run the next missing step. `invoice` is the previous step's; None: the step retrieves it.

        Raises StripeCallError when Stripe fails and the step must be repeated later.
        """
        is_canceling = top_up.status is TopUpStatus.CANCELING
        if top_up.stripe_customer_id is None:
            # Without a customer no call has created an invoice.
            return (await self._finish(top_up) if is_canceling else await self._set_up_customer(top_up)), None
        if top_up.stripe_invoice_id is None:
            return await self._create_invoice(top_up)
        if invoice is None:
            try:
                invoice = await self._stripe.retrieve(top_up.stripe_invoice_id)
            except StripeNotFound:
                return await self._handle_missing_invoice(top_up), None
        if is_canceling:
            return await self._delete_or_void(top_up, invoice), None
        if invoice.status is InvoiceStatus.DRAFT:
            return await self._add_item_or_finalize(top_up, invoice)
        return await self._store.apply_invoice(top_up.organization_id, top_up.top_up_id, invoice), None

    async def _set_up_customer(self, top_up: TopUp) -> TopUp:
        """Update the account's customer, or create one; fail the top-up while the customer's balance forbids it."""
        parameters = top_up.stripe_parameters["customer"]
        async with acquire(self._store.pool) as connection:
            account = (await read_accounts(connection, [top_up.organization_id]))[top_up.organization_id]
            is_returned = await has_returned_overpayment(connection, top_up.organization_id)
        try:
            customer_id, objection = account.stripe_customer_id, ""
            if customer_id is not None:
                if await self._stripe.update_customer(customer_id, parameters):
                    balance = await self._stripe.customer_balance(customer_id, top_up.currency_code)
                    balance = replace(balance, is_money=balance.is_money and not is_returned)
                    objection = balance_objection(top_up, balance)
            else:
                key = f"customer:{self._store.terms.environment}:{top_up.organization_id}:{top_up.attempt}"
                customer_id = await self._stripe.create_customer(parameters, key=key)
            if tax_id := top_up.stripe_parameters.get("tax_id"):
                await self._stripe.set_tax_id(customer_id, tax_id, key=step_key(top_up, "tax-id"))
        except StripeNotFound:
            return await self._clear_customer(top_up)
        except IdempotencyKeySpent:
            return await self._next_attempt(top_up)
        except StripeRefused as refused:
            return await self._fail(top_up, f"stripe_{refused.reason}")
        edit = partial(self._failed, reason=objection) if objection else self.renew_lease
        return await self._store.set_customer(top_up, customer_id, edit=edit)

    async def _create_invoice(self, top_up: TopUp) -> StepResult:
        """Create the draft, or adopt it when the idempotency key no longer protects a repeated call."""
        if self._store.clock() - top_up.attempt_time >= self._store.terms.key_lifetime:
            return await self._adopt_invoice(top_up)
        try:
            invoice = await self._stripe.create_invoice(
                top_up.stripe_parameters["invoice"],
                customer_id=str(top_up.stripe_customer_id),
                key=step_key(top_up, "invoice"),
            )
        except IdempotencyKeySpent:
            return await self._adopt_invoice(top_up)
        except StripeNotFound:
            return await self._clear_customer(top_up), None
        except StripeRefused as refused:
            return await self._fail(top_up, f"stripe_{refused.reason}"), None
        return await self._set_invoice(top_up, invoice)

    async def _adopt_invoice(self, top_up: TopUp) -> StepResult:
        """Find the invoice that an earlier call may have created, by its metadata; without one, begin a new attempt."""
        since = top_up.create_time - _CLOCK_SKEW
        listed = await self._stripe.list_invoices(customer_id=top_up.stripe_customer_id, since=since)
        owner = (top_up.organization_id, top_up.top_up_id)
        owned = [invoice for invoice in listed if owner_of(invoice, self._store.terms.environment) == owner]
        candidates = [invoice for invoice in owned if invoice.status is not InvoiceStatus.VOID] or owned
        if len(candidates) > 1:
            return await self._review_several(top_up, candidates), None
        if candidates:
            # A list leaves things out: the next step retrieves the invoice.
            return (await self._set_invoice(top_up, candidates[0]))[0], None
        if top_up.status is TopUpStatus.CANCELING:
            return await self._finish(top_up), None
        return await self._next_attempt(top_up), None

    async def _add_item_or_finalize(self, top_up: TopUp, draft: Invoice) -> StepResult:
        """Add the item to the draft; finalize the draft when it has its item."""
        invoice: Invoice | None = draft
        try:
            if draft.line_count:
                if objection := tax_objection(top_up, draft):
                    return await self._start_failing(top_up, objection), draft
                invoice = await self._stripe.finalize(draft.invoice_id, key=step_key(top_up, "finalize"))
            else:
                await self._stripe.create_item(
                    top_up.stripe_parameters["item"],
                    customer_id=draft.customer_id,
                    invoice_id=draft.invoice_id,
                    key=step_key(top_up, "item"),
                )
                # With a tax the next step retrieves the draft and looks for it.
                invoice = None if top_up.stripe_parameters.get("tax") else replace(draft, line_count=1)
        except IdempotencyKeySpent:
            # The next step retrieves the invoice, which shows whether the call of the spent key was executed.
            return await self._next_attempt(top_up), None
        except StripeNotFound:
            invoice = None
        except StripeRefused as refused:
            return await self._start_failing(top_up, f"stripe_{refused.reason}"), draft
        return await self._change(top_up, self.renew_lease, point="progress"), invoice

    async def _delete_or_void(self, top_up: TopUp, invoice: Invoice) -> TopUp:
        """Delete the invoice while it is a draft, else void it, and apply the result."""
        try:
            if invoice.status is InvoiceStatus.DRAFT:
                await self._stripe.delete_draft(invoice.invoice_id)
                return await self._finish(top_up)
            if invoice.status in _STILL_PAYABLE and invoice.amount_paid == 0:
                invoice = await self._stripe.void(invoice.invoice_id)
        except StripeRefused:
            invoice = await self._stripe.retrieve(invoice.invoice_id)
            if invoice.status in _STILL_PAYABLE and invoice.amount_paid == 0:
                if top_up.end_status is TopUpStatus.REVIEW:
                    return await self._finish(top_up)
                # A payment is pending: the invoice will be paid, or can be voided later.
                flags = {TopUpFlag.VOID_REFUSED: True}
                await self._store.apply_invoice(top_up.organization_id, top_up.top_up_id, invoice, flags=flags)
                raise
        top_up = await self._store.apply_invoice(top_up.organization_id, top_up.top_up_id, invoice)
        if TopUpFlag.PARTLY_PAID in top_up.flags:
            return await self._change(top_up, keep_partly_paid, point="keep partly paid")
        return top_up

    async def _set_invoice(self, top_up: TopUp, invoice: Invoice) -> StepResult:
        """Set the top-up's invoice id, unless it has one."""

        def edit(row: TopUp) -> TopUp:
            # A webhook may have set the id before this step.
            return replace(self.renew_lease(row), stripe_invoice_id=row.stripe_invoice_id or invoice.invoice_id)

        changed = await self._change(top_up, edit, point="invoice")
        return changed, invoice if changed.stripe_invoice_id == invoice.invoice_id else None

    async def _review_several(self, top_up: TopUp, invoices: list[Invoice]) -> TopUp:
        """Keep the first invoice by _KEEP_ORDER, delete the other drafts, and move the top-up to REVIEW."""
        kept, *others = sorted(invoices, key=lambda invoice: _KEEP_ORDER.index(invoice.status))
        for invoice in others:
            if invoice.status is InvoiceStatus.DRAFT:
                await self._stripe.delete_draft(invoice.invoice_id)

        def edit(row: TopUp) -> TopUp:
            if row.status not in IN_WORK:
                return row
            canceling = start_canceling(row, TopUpStatus.REVIEW, reason="several_invoices")
            reviewed = finish_canceling(canceling, now=self._store.clock())
            return replace(reviewed, stripe_invoice_id=row.stripe_invoice_id or kept.invoice_id)

        return await self._change(top_up, edit, point="several")

    async def _handle_missing_invoice(self, top_up: TopUp) -> TopUp:
        """End or fail a top-up whose draft was deleted.

        Stripe never deletes a finalized invoice: without one, the API key belongs to another account. Raises
        StripeUnavailable.
        """
        if top_up.invoice_number:
            raise StripeUnavailable("not_in_this_account")
        if top_up.status is TopUpStatus.CANCELING:
            return await self._finish(top_up)
        return await self._fail(top_up, "invoice_deleted")

    async def _start_failing(self, top_up: TopUp, reason: str) -> TopUp:
        """Move the top-up to CANCELING, so that its invoice is deleted or voided before it is FAILED."""

        def edit(row: TopUp) -> TopUp:
            is_creating = row.status is TopUpStatus.CREATING
            return self.renew_lease(start_canceling(row, TopUpStatus.FAILED, reason=reason) if is_creating else row)

        return await self._change(top_up, edit, point="start failing")

    async def _fail(self, top_up: TopUp, reason: str) -> TopUp:
        """Move a top-up without an invoice to FAILED, or a CANCELING one to its end_status."""
        return await self._change(top_up, partial(self._failed, reason=reason), point="fail")

    def _failed(self, row: TopUp, *, reason: str) -> TopUp:
        if row.status is TopUpStatus.CREATING:
            row = start_canceling(row, TopUpStatus.FAILED, reason=reason)
        return finish_canceling(row, now=self._store.clock()) if row.status is TopUpStatus.CANCELING else row

    async def _finish(self, top_up: TopUp) -> TopUp:
        def edit(row: TopUp) -> TopUp:
            return finish_canceling(row, now=self._store.clock()) if row.status is TopUpStatus.CANCELING else row

        return await self._change(top_up, edit, point="finish")

    async def _next_attempt(self, top_up: TopUp) -> TopUp:
        return await self._change(top_up, lambda row: self._with_next_attempt(row, top_up.attempt), point="attempt")

    async def _clear_customer(self, top_up: TopUp) -> TopUp:
        """Clear a customer that Stripe does not have, so that the next attempt creates one."""
        return await self._store.set_customer(
            top_up, None, edit=lambda row: self._with_next_attempt(row, top_up.attempt)
        )

    def _with_next_attempt(self, row: TopUp, attempt: int) -> TopUp:
        return replace(self.renew_lease(row), attempt=attempt + 1, attempt_time=self._store.clock())

    async def _change(self, top_up: TopUp, edit: Callable[[TopUp], TopUp], *, point: str) -> TopUp:
        return await self._store.change(top_up.organization_id, top_up.top_up_id, edit, point=point)


def _next_check_time(top_up: TopUp, now: datetime) -> datetime:
    """A tenth of the top-up's age from now: after seconds for a new one, in case a webhook is lost; at most 5 minutes.

    UNCOLLECTIBLE ones wait for at least an hour.
    """
    tenth = (now - top_up.create_time) / 10
    if top_up.status is TopUpStatus.UNCOLLECTIBLE:
        return now + max(tenth, _UNCOLLECTIBLE_CHECK)
    return now + min(max(tenth, _SOONEST_CHECK), _LATEST_CHECK)
