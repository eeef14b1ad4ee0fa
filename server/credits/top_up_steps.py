"""The steps of one top-up: each Stripe call stands between two commits, so that a crash resumes at the missing one."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from server.credits.accounts import read_accounts
from server.credits.top_up_changes import TopUpChanges
from server.credits.top_up_rows import TopUp
from server.credits.top_up_settlement import cancel, end, owner_of
from server.credits.top_up_states import IN_WORK, TopUpStatus
from server.database.pool import connection
from server.payments.client import Payments
from server.payments.failures import KeySpent, NotFound, Refused, Unavailable
from server.payments.invoices import Invoice, InvoiceStatus

_CLOCK_DIFFERENCE = timedelta(days=1)
_STILL_PAYABLE = frozenset({InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE})
# Which of several invoices is kept: the one with the most to lose.
_KEPT_FIRST = [InvoiceStatus.PAID, InvoiceStatus.OPEN, InvoiceStatus.UNCOLLECTIBLE, InvoiceStatus.DRAFT]

Step = tuple[TopUp, Invoice | None]
"""The top-up as a step committed it, and its invoice when the step has just seen it."""


class TopUpSteps:
    """What is missing to a top-up that is CREATING or CANCELING, one step at a time."""

    def __init__(self, changes: TopUpChanges, payments: Payments) -> None:
        self._changes = changes
        self._payments = payments

    def renew(self, row: TopUp) -> TopUp:
        """The row with a lease from now on."""
        return replace(row, lease_expire_time=self._changes.clock() + self._changes.terms.lease)

    async def take(self, top_up: TopUp, invoice: Invoice | None) -> Step:
        """Take the next step; `invoice` is what the last one gave, None when that is not known.

        Raises PaymentsError when Stripe does not let it be taken now.
        """
        canceling = top_up.status is TopUpStatus.CANCELING
        if top_up.stripe_customer_id is None:
            # Without a customer no invoice was ever asked for.
            return (await self._end(top_up) if canceling else await self._find_customer(top_up)), None
        if top_up.stripe_invoice_id is None:
            return await self._create_invoice(top_up)
        if invoice is None:
            try:
                invoice = await self._payments.retrieve(top_up.stripe_invoice_id)
            except NotFound:
                return await self._lost(top_up), None
        if canceling:
            return await self._cancel(top_up, invoice), None
        if invoice.status is InvoiceStatus.DRAFT:
            return await self._complete(top_up, invoice)
        return await self._changes.settle(top_up.organization_id, top_up.top_up_id, invoice), None

    async def _find_customer(self, top_up: TopUp) -> TopUp:
        parameters = top_up.stripe_parameters["customer"]
        async with connection(self._changes.pool) as lent:
            account = (await read_accounts(lent, [top_up.organization_id]))[top_up.organization_id]
        try:
            customer_id = account.stripe_customer_id
            if customer_id is not None:
                await self._payments.update_customer(customer_id, parameters)
            else:
                key = f"customer:{self._changes.terms.environment}:{top_up.organization_id}:{top_up.attempt}"
                customer_id = await self._payments.create_customer(parameters, key=key)
        except NotFound:
            return await self._forget_customer(top_up)
        except KeySpent:
            return await self._next_attempt(top_up)
        except Refused as refused:
            return await self._fail(top_up, f"stripe_{refused.word}")
        return await self._changes.remember_customer(top_up, customer_id, edit=self.renew)

    async def _create_invoice(self, top_up: TopUp) -> Step:
        if self._changes.clock() - top_up.attempt_time >= self._changes.terms.key_lifetime:
            return await self._adopt_invoice(top_up)
        try:
            invoice = await self._payments.create_invoice(
                top_up.stripe_parameters["invoice"],
                customer_id=str(top_up.stripe_customer_id),
                key=_key(top_up, "invoice"),
            )
        except KeySpent:
            return await self._adopt_invoice(top_up)
        except NotFound:
            return await self._forget_customer(top_up), None
        except Refused as refused:
            return await self._fail(top_up, f"stripe_{refused.word}"), None
        return await self._keep_invoice(top_up, invoice)

    async def _adopt_invoice(self, top_up: TopUp) -> Step:
        """Go on with the invoice that an earlier call may have left: what it did, Stripe alone knows."""
        since = top_up.create_time - _CLOCK_DIFFERENCE
        listed = await self._payments.list_invoices(customer_id=top_up.stripe_customer_id, since=since)
        owner = (top_up.organization_id, top_up.top_up_id)
        owned = [invoice for invoice in listed if owner_of(invoice, self._changes.terms.environment) == owner]
        living = [invoice for invoice in owned if invoice.status is not InvoiceStatus.VOID] or owned
        if len(living) > 1:
            return await self._review_several(top_up, living), None
        if living:
            return await self._keep_invoice(top_up, living[0])
        if top_up.status is TopUpStatus.CANCELING:
            return await self._end(top_up), None
        return await self._next_attempt(top_up), None

    async def _complete(self, top_up: TopUp, draft: Invoice) -> Step:
        """Give the draft its item, or finalize it when it has one."""
        invoice: Invoice | None = draft
        try:
            if draft.line_count:
                invoice = await self._payments.finalize(draft.invoice_id, key=_key(top_up, "finalize"))
            else:
                await self._payments.create_item(
                    top_up.stripe_parameters["item"],
                    customer_id=draft.customer_id,
                    invoice_id=draft.invoice_id,
                    key=_key(top_up, "item"),
                )
                invoice = replace(draft, line_count=1)
        except KeySpent:
            # Retrieved again, the invoice says whether the spent key did its work.
            return await self._next_attempt(top_up), None
        except NotFound:
            invoice = None
        except Refused as refused:
            return await self._give_up(top_up, f"stripe_{refused.word}"), draft
        return await self._change(top_up, self.renew, point="progress"), invoice

    async def _cancel(self, top_up: TopUp, invoice: Invoice) -> TopUp:
        try:
            if invoice.status is InvoiceStatus.DRAFT:
                await self._payments.delete_draft(invoice.invoice_id)
                return await self._end(top_up)
            if invoice.status in _STILL_PAYABLE:
                invoice = await self._payments.void(invoice.invoice_id)
        except Refused:
            invoice = await self._payments.retrieve(invoice.invoice_id)
            if invoice.status in _STILL_PAYABLE:
                if top_up.end_status is TopUpStatus.REVIEW:
                    return await self._end(top_up)
                # A payment is on its way: it will be paid, or can be voided later.
                raise
        return await self._changes.settle(top_up.organization_id, top_up.top_up_id, invoice)

    async def _keep_invoice(self, top_up: TopUp, invoice: Invoice) -> Step:
        def edit(row: TopUp) -> TopUp:
            # A webhook may have brought the id before this step could.
            return replace(self.renew(row), stripe_invoice_id=row.stripe_invoice_id or invoice.invoice_id)

        kept = await self._change(top_up, edit, point="invoice")
        return kept, invoice if kept.stripe_invoice_id == invoice.invoice_id else None

    async def _review_several(self, top_up: TopUp, invoices: list[Invoice]) -> TopUp:
        kept, *others = sorted(invoices, key=lambda invoice: _KEPT_FIRST.index(invoice.status))
        for invoice in others:
            if invoice.status is InvoiceStatus.DRAFT:
                await self._payments.delete_draft(invoice.invoice_id)

        def edit(row: TopUp) -> TopUp:
            if row.status not in IN_WORK:
                return row
            reviewed = end(cancel(row, TopUpStatus.REVIEW, reason="several_invoices"), now=self._changes.clock())
            return replace(reviewed, stripe_invoice_id=row.stripe_invoice_id or kept.invoice_id)

        return await self._change(top_up, edit, point="several")

    async def _lost(self, top_up: TopUp) -> TopUp:
        """The invoice is not there: a deleted draft. One that was finalized can't be: that is another account's key."""
        if top_up.invoice_number:
            raise Unavailable("an invoice that was open is not in this Stripe account")
        if top_up.status is TopUpStatus.CANCELING:
            return await self._end(top_up)
        return await self._fail(top_up, "invoice_deleted")

    async def _give_up(self, top_up: TopUp, reason: str) -> TopUp:
        """Have the invoice deleted or voided before the top-up is FAILED."""

        def edit(row: TopUp) -> TopUp:
            creating = row.status is TopUpStatus.CREATING
            return self.renew(cancel(row, TopUpStatus.FAILED, reason=reason) if creating else row)

        return await self._change(top_up, edit, point="give up")

    async def _fail(self, top_up: TopUp, reason: str) -> TopUp:
        """There is no invoice and there will be none."""

        def edit(row: TopUp) -> TopUp:
            if row.status is TopUpStatus.CREATING:
                row = cancel(row, TopUpStatus.FAILED, reason=reason)
            return end(row, now=self._changes.clock()) if row.status is TopUpStatus.CANCELING else row

        return await self._change(top_up, edit, point="fail")

    async def _end(self, top_up: TopUp) -> TopUp:
        def edit(row: TopUp) -> TopUp:
            return end(row, now=self._changes.clock()) if row.status is TopUpStatus.CANCELING else row

        return await self._change(top_up, edit, point="end")

    async def _next_attempt(self, top_up: TopUp) -> TopUp:
        return await self._change(top_up, lambda row: self._attempted(row, top_up.attempt), point="attempt")

    async def _forget_customer(self, top_up: TopUp) -> TopUp:
        return await self._changes.remember_customer(
            top_up, None, edit=lambda row: self._attempted(row, top_up.attempt)
        )

    def _attempted(self, row: TopUp, attempt: int) -> TopUp:
        return replace(self.renew(row), attempt=attempt + 1, attempt_time=self._changes.clock())

    async def _change(self, top_up: TopUp, edit: Callable[[TopUp], TopUp], *, point: str) -> TopUp:
        return await self._changes.change(top_up.organization_id, top_up.top_up_id, edit, point=point)


def _key(top_up: TopUp, step: str) -> str:
    return f"top-up:{top_up.top_up_id}:{step}:{top_up.attempt}"
