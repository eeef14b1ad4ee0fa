"""Who works on a top-up and when: a lease for one worker at a time, and the time of the next look."""

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from server.credits.top_up_changes import TopUpChanges
from server.credits.top_up_rows import TopUp
from server.credits.top_up_settlement import cancel
from server.credits.top_up_states import IN_WORK, PAYABLE, TopUpStatus
from server.credits.top_up_steps import TopUpSteps
from server.payments.client import Payments
from server.payments.failures import PaymentsError
from server.payments.invoices import Invoice

log = structlog.get_logger(__name__)

_STEPS_IN_A_ROW = 12
"""More than any way through takes; what Stripe lets nobody finish must not be tried without a pause."""
_SOONEST_CHECK, _LATEST_CHECK = timedelta(seconds=5), timedelta(minutes=5)
_UNCOLLECTIBLE_CHECK = timedelta(hours=1)


class TopUpWorker:
    """Advances top-ups as far as Stripe lets them. A second worker on one, by accident, does no harm."""

    def __init__(self, changes: TopUpChanges, payments: Payments) -> None:
        self._changes = changes
        self._payments = payments
        self._steps = TopUpSteps(changes, payments)

    async def advance(self, organization_id: str, top_up_id: UUID) -> TopUp | None:
        """Take every step that can be taken now; the top-up as it then is.

        None when another worker has it or its time has not come. What Stripe did not answer is left to a later call.
        """
        claimed = await self._claim(organization_id, top_up_id)
        while claimed is not None:
            released = await self._release(await self._work(claimed))
            if released.lease_expire_time is None:
                return released
            # Whoever set it to CANCELING meanwhile saw the lease and left the work to this worker.
            claimed = released
        return None

    async def _claim(self, organization_id: str, top_up_id: UUID) -> TopUp | None:
        now, free = self._changes.clock(), False

        def edit(row: TopUp) -> TopUp:
            nonlocal free
            free = (
                row.status in IN_WORK | PAYABLE
                and row.next_check_time <= now
                and (row.lease_expire_time is None or row.lease_expire_time <= now)
            )
            return self._steps.renew(row) if free else row

        claimed = await self._changes.change(organization_id, top_up_id, edit, point="claim")
        return claimed if free else None

    async def _release(self, top_up: TopUp) -> TopUp:
        def edit(row: TopUp) -> TopUp:
            if row.status in IN_WORK and row.status is not top_up.status:
                return self._steps.renew(row)
            return replace(row, lease_expire_time=None, next_check_time=_next_check_time(row, self._changes.clock()))

        return await self._changes.change(top_up.organization_id, top_up.top_up_id, edit, point="release")

    async def _work(self, top_up: TopUp) -> TopUp:
        invoice: Invoice | None = None
        try:
            if top_up.status in PAYABLE:
                top_up = await self._look_up(top_up)
            for _ in range(_STEPS_IN_A_ROW):
                if top_up.status not in IN_WORK:
                    break
                top_up, invoice = await self._steps.take(top_up, invoice)
        except PaymentsError as error:
            why = type(error).__name__
            log.warning("top-up waits for Stripe", top_up_id=str(top_up.top_up_id), status=top_up.status, why=why)
        return top_up

    async def _look_up(self, top_up: TopUp) -> TopUp:
        """Ask Stripe where an unpaid invoice stands; when it stayed unpaid for too long, begin to void it."""
        invoice = await self._payments.retrieve(str(top_up.stripe_invoice_id))
        top_up = await self._changes.settle(top_up.organization_id, top_up.top_up_id, invoice)

        def edit(row: TopUp) -> TopUp:
            late = row.due_time and row.due_time + self._changes.terms.expire_grace <= self._changes.clock()
            return cancel(row, TopUpStatus.EXPIRED) if late and row.status is TopUpStatus.OPEN else row

        if edit(top_up) is top_up:
            return top_up
        return await self._changes.change(top_up.organization_id, top_up.top_up_id, edit, point="expire")


def _next_check_time(top_up: TopUp, now: datetime) -> datetime:
    """Young ones often, so that a lost webhook costs seconds; old ones rarely."""
    tenth = (now - top_up.create_time) / 10
    if top_up.status is TopUpStatus.UNCOLLECTIBLE:
        return now + max(tenth, _UNCOLLECTIBLE_CHECK)
    return now + min(max(tenth, _SOONEST_CHECK), _LATEST_CHECK)
