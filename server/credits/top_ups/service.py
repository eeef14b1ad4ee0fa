"""The operations on top-ups that callers and periodic jobs use: create, get, list, cancel, advance the due ones."""

import asyncio
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from uuid import UUID

import structlog

from server.credits.accounts import MAXIMUM_CREDITS, Request, RequestMemory, find_answer, insert_request
from server.credits.pricing import Money, Pricing, Quote
from server.credits.stripe.client import StripeClient
from server.credits.stripe.errors import StripeCallError
from server.credits.stripe.invoices import AutomaticTax, InvoiceOrder, TaxRate, invoice_parameters
from server.credits.top_ups.state_machine import (
    BALANCE_REASONS,
    IN_WORK,
    Resolution,
    TopUp,
    TopUpFlag,
    TopUpStatus,
    TopUpTerms,
    start_canceling,
)
from server.credits.top_ups.store import (
    NEWEST,
    TopUpStore,
    find_due_top_ups,
    find_top_up,
    find_unfinished,
    insert_top_up,
    list_top_ups,
    set_contact,
)
from server.credits.top_ups.worker import TopUpWorker
from server.errors import (
    BalanceAboveMaximum,
    BillingAddressMissing,
    CustomerBalanceUnsettled,
    OrganizationSuspended,
    RequestIdExpired,
    TopUpAlreadyOpen,
    TopUpNotCancelable,
    TopUpPartlyPaid,
)
from server.ids import new_id
from server.logs import safe_traceback
from server.postgres.pool import Connection, acquire, retry_transient, transaction
from server.settings import Settings

_log = structlog.get_logger(__name__)

_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.05, 1.0
_LINKS_MAXIMUM_AGE = timedelta(minutes=1)
_LINKS_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Purchase:
    """A caller's order. A repeated request_id is the same purchase, and must have the same contents."""

    organization_id: str
    request_id: UUID
    credits: int
    currency_code: str
    billing_email: str
    billing_name: str
    """The name on the invoice; empty: the organization_id."""
    billing_address: Mapping[str, str] = field(default_factory=dict)
    """By Stripe's names: country, line1, and so on; empty for none."""
    tax_id: Mapping[str, str] = field(default_factory=dict)
    """`type` and `value`, or empty."""

    def fingerprint(self) -> bytes:
        """A SHA-256 digest of the contents, without the ids."""
        contents: list[object] = [self.credits, self.currency_code, self.billing_email, self.billing_name]
        if self.billing_address or self.tax_id:  # without them as it was before there were any
            contents += [dict(self.billing_address), dict(self.tax_id)]
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).digest()


@dataclass(frozen=True, slots=True)
class TopUpQuote:
    """What a top-up costs."""

    quote: Quote
    tax: Money
    """0 without a tax; with an automatic one the tax is not known."""
    total_with_tax: Money
    is_estimated: bool
    """Stripe computes the tax when the invoice is made."""


class TopUps:
    """Purchases of credits. The work on a top-up continues in the background after the call that started it."""

    def __init__(self, store: TopUpStore, stripe_client: StripeClient, pricing: Pricing) -> None:
        self._store = store
        self._stripe = stripe_client
        self._pricing = pricing
        self._worker = TopUpWorker(store, stripe_client)
        self._tasks: dict[tuple[UUID, TopUpStatus], asyncio.Task[None]] = {}
        """By the top-up and the status that they began with."""

    async def create(self, purchase: Purchase, *, created_by: str, wait_seconds: float) -> TopUp:
        """Create a top-up and wait until Stripe has its invoice, at most wait_seconds; then it is still CREATING.

        A repeat with the same request_id returns the same top-up. Cancelling the call does not stop the work.
        Raises TopUpBelowMinimum, TopUpAboveMaximum, CurrencyNotSold, TopUpAlreadyOpen, BalanceAboveMaximum,
        CustomerBalanceUnsettled, BillingAddressMissing, RequestIdReused, RequestIdExpired.
        """
        has_rate = purchase.currency_code in self._store.terms.tax_rates
        if self._store.terms.automatic_tax and not has_rate and not purchase.billing_address:
            raise BillingAddressMissing

        async def once() -> TopUp:
            async with transaction(self._store.pool) as connection:
                return await self._record(connection, purchase, created_by=created_by)

        top_up = await retry_transient(once)
        await self._store.failpoint("commit create")
        top_up = await self._work_and_wait(top_up, wait_seconds=wait_seconds)
        if top_up.status is TopUpStatus.FAILED and top_up.failure_reason in BALANCE_REASONS:
            mode = "" if self._store.terms.livemode else "test/"
            raise CustomerBalanceUnsettled(
                why=top_up.failure_reason,
                customer_url=f"https://dashboard.stripe.com/{mode}customers/{top_up.stripe_customer_id}",
            )
        return top_up

    def quote(self, *, credits: int, currency_code: str) -> TopUpQuote:
        """What CreateTopUp would charge. Raises TopUpBelowMinimum, TopUpAboveMaximum or CurrencyNotSold."""
        quote, terms = self._pricing.quote(credits=credits, currency_code=currency_code), self._store.terms
        rate = terms.tax_rates.get(currency_code)
        tax = rate.tax_on(quote.total.amount) if rate else Decimal(0)
        added = Decimal(0) if rate and rate.inclusive else tax
        return TopUpQuote(
            quote,
            tax=Money(currency_code, tax),
            total_with_tax=Money(currency_code, quote.total.amount + added),
            is_estimated=terms.automatic_tax is not None and rate is None,
        )

    async def resolve(self, organization_id: str, top_up_id: UUID, resolution: Resolution) -> TopUp:
        """End what needs a person: REVIEW, a part that was paid, or flags. See TopUpStore.resolve for the errors."""
        return await self._store.resolve(organization_id, top_up_id, resolution)

    async def get(self, organization_id: str, top_up_id: UUID) -> TopUp:
        """Read a top-up. Refreshes links older than a minute, unless Stripe does not answer within 3 s.

        Raises TopUpNotFound.
        """
        top_up = await self._store.read(organization_id, top_up_id)
        oldest = self._store.clock() - _LINKS_MAXIMUM_AGE
        if top_up.stripe_invoice_id is None or top_up.links_fetch_time is None or top_up.links_fetch_time > oldest:
            return top_up
        try:
            async with asyncio.timeout(_LINKS_TIMEOUT_SECONDS):
                invoice = await self._stripe.retrieve(top_up.stripe_invoice_id)
        except (StripeCallError, TimeoutError) as error:
            why = error.reason if isinstance(error, StripeCallError) else "no_answer"
            _log.warning("invoice links were not refreshed", top_up_id=str(top_up_id), why=why)
            return top_up
        # The invoice contains more than the links: a payment whose webhook is late is credited here.
        return await self._store.apply_invoice(organization_id, top_up_id, invoice)

    async def list(
        self,
        organization_id: str,
        *,
        statuses: Collection[TopUpStatus] = (),
        before: UUID | None = None,
        limit: int,
    ) -> list[TopUp]:
        """At most `limit` top-ups, newest first: those with an id below `before` and with one of the statuses.

        None and empty statuses select all.
        """
        async with acquire(self._store.pool) as connection:
            return await list_top_ups(
                connection, organization_id, statuses=statuses or TopUpStatus, before=before or NEWEST, limit=limit
            )

    async def cancel(self, organization_id: str, top_up_id: UUID, *, wait_seconds: float) -> TopUp:
        """Cancel a top-up and wait until its invoice is void, at most wait_seconds; then it is still CANCELING.

        A payment that arrives first wins, and the top-up is PAID. A repeat changes nothing. Raises TopUpNotFound,
        TopUpNotCancelable, and TopUpPartlyPaid when a part is paid: then the invoice stays open.
        """

        def edit(row: TopUp) -> TopUp:
            if row.status in {TopUpStatus.CANCELED, TopUpStatus.CANCELING}:
                return row
            if row.status not in {TopUpStatus.CREATING, TopUpStatus.OPEN}:
                raise TopUpNotCancelable(status=row.status.value)
            if TopUpFlag.PARTLY_PAID in row.flags:
                raise TopUpPartlyPaid
            return replace(start_canceling(row, TopUpStatus.CANCELED), next_check_time=self._store.clock())

        top_up = await self._store.change(organization_id, top_up_id, edit, point="cancel")
        top_up = await self._work_and_wait(top_up, wait_seconds=wait_seconds)
        if top_up.status is TopUpStatus.OPEN and TopUpFlag.PARTLY_PAID in top_up.flags:
            raise TopUpPartlyPaid
        return top_up

    async def advance_due(self, *, now: datetime, limit: int) -> int:
        """Advance at most `limit` due top-ups; returns how many were due.

        Due are those that a crash or an outage interrupted, and unpaid ones whose invoice is to be retrieved.
        """
        due = await find_due_top_ups(self._store.pool, now=now, limit=limit)
        results = await asyncio.gather(*(self._worker.advance(*ids) for ids in due), return_exceptions=True)
        for (_, top_up_id), result in zip(due, results, strict=True):
            if isinstance(result, Exception):
                _log.error("top-up was not advanced", top_up_id=str(top_up_id), trace=safe_traceback(result))
        return len(due)

    async def close(self) -> None:
        """Wait for the background work. Each step is short; a step not yet begun is left to a periodic job."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _record(self, connection: Connection, purchase: Purchase, *, created_by: str) -> TopUp:
        # The account's lock serializes purchases; the unique constraints enforce the same rules.
        account = await self._store.lock_account(connection, purchase.organization_id)
        key, now, top_up_id = (purchase.organization_id, purchase.request_id), self._store.clock(), new_id()
        request = Request("CreateTopUp", purchase.fingerprint(), top_up_id)
        answer = await find_answer(connection, key, request, memory=self._store.terms.memory, now=now)
        if answer is not None:
            earlier = await find_top_up(connection, purchase.organization_id, answer)
            if earlier is None:
                raise RequestIdExpired
            return earlier
        if account.suspend_time is not None:
            raise OrganizationSuspended
        quote = self._pricing.quote(credits=purchase.credits, currency_code=purchase.currency_code)
        unfinished = await find_unfinished(connection, purchase.organization_id)
        if unfinished is not None:
            raise TopUpAlreadyOpen(
                top_up_id=str(unfinished.top_up_id), hosted_invoice_url=unfinished.hosted_invoice_url
            )
        if account.available_credits + quote.credits > MAXIMUM_CREDITS:
            raise BalanceAboveMaximum(maximum_credits=MAXIMUM_CREDITS)
        top_up = new_top_up(purchase, quote, top_up_id, self._store.terms, created_by=created_by, now=now)
        await insert_top_up(connection, top_up)
        await insert_request(connection, key, request, now=now)
        await set_contact(
            connection, purchase.organization_id, email=purchase.billing_email, name=purchase.billing_name
        )
        return top_up

    def start(self, top_up: TopUp) -> asyncio.Task[None]:
        """Work on the top-up in the background; returns the task. Calls that repeat an order share it."""
        key = (top_up.top_up_id, top_up.status)
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._work(top_up), name=f"top-up {top_up.top_up_id}")
            task.add_done_callback(partial(self._on_task_done, key))
        return task

    async def _work_and_wait(self, top_up: TopUp, *, wait_seconds: float) -> TopUp:
        """Work on the top-up in a task and wait for it, at most wait_seconds; returns the top-up as last committed."""
        if top_up.status not in IN_WORK:
            return top_up
        await asyncio.wait({self.start(top_up)}, timeout=wait_seconds)
        return await self._store.read(top_up.organization_id, top_up.top_up_id)

    async def _work(self, top_up: TopUp) -> None:
        """Advance the top-up, or wait while another worker holds its lease."""
        pause = _SHORTEST_POLL_SECONDS
        while await self._worker.advance(top_up.organization_id, top_up.top_up_id) is None:
            current = await self._store.read(top_up.organization_id, top_up.top_up_id)
            if current.status not in IN_WORK or current.lease_expire_time is None:
                return
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_POLL_SECONDS)

    def _on_task_done(self, key: tuple[UUID, TopUpStatus], task: asyncio.Task[None]) -> None:
        del self._tasks[key]
        if not task.cancelled() and (error := task.exception()):
            # A periodic job continues the work when the lease has ended.
            _log.error("work on a top-up failed", task=task.get_name(), trace=safe_traceback(error))


def new_top_up(
    purchase: Purchase,
    quote: Quote,
    top_up_id: UUID,
    terms: TopUpTerms,
    *,
    created_by: str,
    now: datetime,
    is_automatic: bool = False,
) -> TopUp:
    """The top-up of an order, with the parameters of its Stripe calls; an automatic one is charged to a card."""
    methods = ("card",) if is_automatic else terms.payment_method_types.get(purchase.currency_code, ())
    order = InvoiceOrder(
        environment=terms.environment,
        organization_id=purchase.organization_id,
        top_up_id=top_up_id,
        request_id=purchase.request_id,
        credits=quote.credits,
        currency_code=purchase.currency_code,
        unit_price=quote.unit_price.amount,
        total=quote.total.amount,
        billing_email=purchase.billing_email,
        billing_name=purchase.billing_name,
        days_until_due=terms.days_until_due,
        payment_method_types=methods,
        billing_address=purchase.billing_address,
        tax_id=purchase.tax_id,
        tax=terms.tax_rates.get(purchase.currency_code) or terms.automatic_tax,
        is_automatic=is_automatic,
    )
    return TopUp(
        organization_id=purchase.organization_id,
        top_up_id=top_up_id,
        status=TopUpStatus.CREATING,
        end_status=None,
        failure_reason="",
        flags=(),
        credits=quote.credits,
        currency_code=purchase.currency_code,
        unit_price=quote.unit_price.amount,
        total=quote.total.amount,
        created_by=created_by,
        create_time=now,
        stripe_parameters=invoice_parameters(order),
        attempt=1,
        attempt_time=now,
        next_check_time=now,
        due_time=now + timedelta(days=terms.days_until_due) if is_automatic else None,
        is_automatic=is_automatic,
        charge_time=now if is_automatic else None,
    )


def terms_of(settings: Settings, *, livemode: bool, memory: RequestMemory) -> TopUpTerms:
    """What the settings say about top-ups; `livemode` is that of the API key."""
    return TopUpTerms(
        environment=settings.environment,
        livemode=livemode,
        days_until_due=settings.stripe.days_until_due,
        expire_grace=timedelta(hours=settings.stripe.expire_grace_hours),
        trust_out_of_band=settings.stripe.trust_out_of_band,
        payment_method_types=settings.stripe.payment_methods,
        tax_rates={
            currency: TaxRate(rate.id, rate.percent, rate.inclusive)
            for currency, rate in settings.stripe.tax_rates.items()
        },
        automatic_tax=None
        if settings.stripe.automatic_tax == "off"
        else AutomaticTax(inclusive=settings.stripe.automatic_tax == "inclusive"),
        freeze_disputed=settings.stripe.freeze_disputed,
        charge_failures=settings.stripe.charge_failures,
        charge_pause=timedelta(hours=settings.stripe.charge_pause_hours),
        lease=timedelta(seconds=settings.stripe.lease_seconds),
        memory=memory,
    )
