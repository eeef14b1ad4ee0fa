"""The charge of an automatic top-up: its invoice is paid with the organization's saved card, between two commits.

A charge that a crash or an outage interrupted is repeated with the same idempotency key. Stripe pays an invoice once in
any case.
"""

from dataclasses import replace

from server.credits.accounts import read_accounts
from server.credits.stripe.client import StripeClient
from server.credits.stripe.errors import IdempotencyKeySpent, StripeNotFound, StripeRefused
from server.credits.top_ups.automatic import fail_charge, may_charge, next_month, refuse_by_cap
from server.credits.top_ups.automatic_store import lock_automatic, notify, refuse_over_cap, write_automatic
from server.credits.top_ups.state_machine import TopUp, TopUpFlag, TopUpStatus, start_canceling, step_key
from server.credits.top_ups.store import TopUpStore, lock_top_up, write_top_up
from server.errors import TopUpNotFound
from server.postgres.pool import Connection, retry_transient, transaction

_NOT_PAID = "not_paid"
"""Stripe accepted the charge, and the invoice is not paid, as while a payment is pending."""


class Charges:
    """Charges saved cards. Two workers on one top-up are safe: they use one idempotency key."""

    def __init__(self, store: TopUpStore, stripe_client: StripeClient) -> None:
        self._store = store
        self._stripe = stripe_client

    def is_due(self, top_up: TopUp) -> bool:
        """Whether the card is to be charged for the top-up now."""
        return (
            top_up.status is TopUpStatus.OPEN
            and top_up.charge_time is not None
            and top_up.charge_time <= self._store.clock()
        )

    async def charge(self, top_up: TopUp) -> TopUp:
        """Charge the saved card, unless it may not be charged any more; returns the top-up as committed.

        Raises StripeCallError when Stripe gives no result and the charge must be repeated later.
        """
        payment_method_id = await retry_transient(lambda: self._find_card(top_up))
        await self._store.failpoint("commit begin charge")
        if payment_method_id is None:
            return await self._store.read(top_up.organization_id, top_up.top_up_id)
        invoice_id, failure = str(top_up.stripe_invoice_id), _NOT_PAID
        try:
            invoice = await self._stripe.pay(
                invoice_id, payment_method_id=payment_method_id, key=step_key(top_up, "pay")
            )
        except IdempotencyKeySpent:
            failure = ""
            invoice = await self._stripe.retrieve(invoice_id)
        except (StripeNotFound, StripeRefused) as refused:
            failure = refused.reason
            invoice = await self._stripe.retrieve(invoice_id)
        applied = await self._store.apply_invoice(top_up.organization_id, top_up.top_up_id, invoice)
        if applied.status is not TopUpStatus.OPEN:
            return applied
        failed = await retry_transient(lambda: self._record_failure(top_up, failure))
        await self._store.failpoint("commit failed charge")
        return failed

    async def _find_card(self, top_up: TopUp) -> str | None:
        """The card to charge; None when it may not be charged now: it has its next charge_time then, or is canceled."""
        async with transaction(self._store.pool) as connection:
            accounts = await read_accounts(connection, [top_up.organization_id])
            before = await self._lock(connection, top_up)
            row, now = await lock_automatic(connection, top_up.organization_id), self._store.clock()
            if not self.is_due(before):
                return None
            if row is None or not may_charge(row, before) or TopUpFlag.PARTLY_PAID in before.flags:
                after = replace(before, charge_time=None)
            elif accounts[top_up.organization_id].suspend_time is not None:
                after = replace(before, charge_time=now + self._store.terms.charge_pause)
            elif await refuse_over_cap(connection, row, before.credits, now=now):
                after = replace(before, charge_time=next_month(now))
                if before.due_time and before.due_time + self._store.terms.expire_grace < next_month(now):
                    # It would expire before: the next month orders another one.
                    refused = refuse_by_cap(row, now=now)
                    await write_automatic(connection, before=refused, after=replace(refused, top_up_id=None), now=now)
                    after = start_canceling(replace(before, charge_time=None), TopUpStatus.CANCELED)
            else:
                return row.payment_method_id
            await self._write(connection, before, after)
            return None

    async def _record_failure(self, top_up: TopUp, failure: str) -> TopUp:
        """Begin the next attempt, with another key; after a pause and with a notice if the charge failed.

        An empty failure: nobody knows what became of the last key. Changes nothing when another worker was first.
        """
        async with transaction(self._store.pool) as connection:
            before = await self._lock(connection, top_up)
            row, now = await lock_automatic(connection, top_up.organization_id), self._store.clock()
            if before.status is not TopUpStatus.OPEN or before.attempt != top_up.attempt:
                return before
            after = replace(before, attempt=before.attempt + 1, attempt_time=now)
            if failure and row is not None and may_charge(row, before):
                failed = fail_charge(row, failure, self._store.terms, now=now)
                after = replace(after, charge_time=failed.next_attempt_time if failed.is_enabled else None)
                details = {
                    "credits": before.credits,
                    "currency_code": before.currency_code,
                    "total": str(before.invoice_total or before.total),
                    "invoice_number": before.invoice_number,
                    "hosted_invoice_url": before.hosted_invoice_url,
                }
                reference = str(before.top_up_id)
                await notify(connection, row, "AUTOMATIC_TOP_UP_DECLINED", reference, details, now=now)
                await write_automatic(connection, before=row, after=failed, now=now)
            await self._write(connection, before, after)
            return after

    async def _lock(self, connection: Connection, top_up: TopUp) -> TopUp:
        locked = await lock_top_up(connection, top_up.organization_id, top_up.top_up_id)
        if locked is None:
            raise TopUpNotFound
        return locked

    async def _write(self, connection: Connection, before: TopUp, after: TopUp) -> None:
        await write_top_up(connection, before=before, after=after, terms=self._store.terms, now=self._store.clock())
