"""Saved cards: the page on which one is saved, what Stripe's events tell of it, and its removal."""

import asyncio
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import structlog

from server.credits.accounts import Request, find_answer, insert_request
from server.credits.stripe.cards import Card, CardSetup, card_setup_parameters
from server.credits.stripe.client import StripeClient
from server.credits.stripe.errors import IdempotencyKeySpent, StripeCallError, StripeNotFound, StripeRefused
from server.credits.stripe.invoices import Parameters
from server.credits.top_ups.automatic import SavedCard, remove_card, save_card_of, show_card
from server.credits.top_ups.automatic_store import write_automatic
from server.credits.top_ups.store import TopUpStore
from server.errors import (
    FieldViolation,
    InvalidFields,
    OrganizationSuspended,
    PaymentProviderUnavailable,
    RequestIdExpired,
)
from server.ids import new_id
from server.postgres.pool import acquire, retry_transient, transaction
from server.postgres.queries import load_queries
from server.postgres.workers import find_everywhere

SQL = load_queries(__file__)
_log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class CardSetupOrder:
    """A caller's request for a page. A repeated request_id is the same page, and must have the same contents."""

    organization_id: str
    request_id: UUID
    billing_email: str
    billing_name: str
    """Empty: the organization_id."""
    return_url: str

    def fingerprint(self) -> bytes:
        """A SHA-256 digest of the contents, without the ids."""
        contents = [self.billing_email, self.billing_name, self.return_url]
        return hashlib.sha256(json.dumps(contents).encode()).digest()


async def start_card_setup(store: TopUpStore, stripe_client: StripeClient, order: CardSetupOrder) -> CardSetup:
    """Return Stripe's page for a card; a repeat with the same request_id gets the same page for a day.

    Creates the organization's customer at Stripe if it has none. Raises RequestIdReused, RequestIdExpired,
    OrganizationSuspended, PaymentProviderUnavailable, and InvalidFields for what Stripe refuses.
    """
    setup_id, customer_id = await retry_transient(lambda: _record(store, order))
    await store.failpoint("commit card setup")
    try:
        customer_id = customer_id or await _create_customer(store, stripe_client, order, str(setup_id))
        try:
            return await _create_page(store, stripe_client, order, setup_id, customer_id)
        except StripeNotFound:  # the customer was deleted at Stripe
            await store.clear_customer(order.organization_id, customer_id)
            customer_id = await _create_customer(store, stripe_client, order, f"{setup_id}:{customer_id}")
            return await _create_page(store, stripe_client, order, setup_id, customer_id)
    except IdempotencyKeySpent as spent:
        raise RequestIdExpired from spent
    except StripeRefused as refused:
        violation = FieldViolation("return_url", f"what Stripe accepts: it answers {refused.reason}")
        raise InvalidFields(violations=(violation,)) from refused
    except StripeCallError as error:
        raise PaymentProviderUnavailable(retry_after_seconds=_RETRY_SECONDS) from error


async def _record(store: TopUpStore, order: CardSetupOrder) -> tuple[UUID, str | None]:
    key, now = (order.organization_id, order.request_id), store.clock()
    request = Request("StartCardSetup", order.fingerprint(), new_id(now))
    async with transaction(store.pool) as connection:
        account = await store.lock_account(connection, order.organization_id)
        answer = await find_answer(connection, key, request, memory=store.terms.memory, now=now)
        if answer is not None:
            return answer, account.stripe_customer_id
        if account.suspend_time is not None:
            raise OrganizationSuspended
        await insert_request(connection, key, request, now=now)
    return request.answer_id, account.stripe_customer_id


async def _create_customer(store: TopUpStore, stripe_client: StripeClient, order: CardSetupOrder, setup: str) -> str:
    parameters: Parameters = {
        "email": order.billing_email,
        "name": order.billing_name or order.organization_id,
        "metadata": {"organization_id": order.organization_id, "environment": store.terms.environment},
    }
    customer_id = await stripe_client.create_customer(parameters, key=f"customer:{setup}")
    return await store.set_missing_customer(order.organization_id, customer_id)


async def _create_page(
    store: TopUpStore, stripe_client: StripeClient, order: CardSetupOrder, setup_id: UUID, customer_id: str
) -> CardSetup:
    parameters = card_setup_parameters(
        environment=store.terms.environment, organization_id=order.organization_id, return_url=order.return_url
    )
    key = f"card-setup:{setup_id}:{customer_id}"
    return await stripe_client.create_card_setup(parameters, customer_id=customer_id, key=key)


async def save_card(store: TopUpStore, stripe_client: StripeClient, session_id: str) -> None:
    """Save the card of a completed page; a repeat changes nothing.

    An unfinished automatic top-up whose charge failed is charged to it now. Raises StripeCallError.
    """
    setup = await stripe_client.retrieve_card_setup(session_id)
    organization_id = setup.metadata.get("organization_id")
    is_own = setup.metadata.get("environment") == store.terms.environment and setup.livemode == store.terms.livemode
    if not (organization_id and is_own and setup.card):
        return
    card = SavedCard(setup.card, setup.session_id, setup.create_time)

    async def once() -> None:
        async with transaction(store.pool) as connection:
            account, unfinished, before = await store.lock_automatic(connection, organization_id)
            if account.stripe_customer_id != setup.customer_id:
                _log.warning("a card is of a customer that was replaced", organization_id=organization_id)
                return
            after = save_card_of(before, card, now=store.clock())
            if after != before:
                await store.restart_automatic(connection, unfinished, before=before, after=after)

    await retry_transient(once)
    await store.failpoint("commit card")


async def follow_card(store: TopUpStore, stripe_client: StripeClient, payment_method_id: str) -> None:
    """Show a saved card as it is at Stripe now; switch off what it was for if it was removed there.

    A payment method that is nobody's card here, such as a bank account of another product, is not looked at. Raises
    StripeCallError.
    """
    async with acquire(store.pool) as connection:
        rows = await connection.execute(SQL.find_card, {"payment_method_id": payment_method_id})
        organization_ids = [row[0] for row in await rows.fetchall()]
    if not organization_ids:
        return
    card = await stripe_client.retrieve_card(payment_method_id)
    for organization_id in organization_ids:
        if card is None:
            await remove_saved_card(store, organization_id, removed_at_stripe=payment_method_id)
        else:
            await retry_transient(partial(_show_card, store, organization_id, card))


async def _show_card(store: TopUpStore, organization_id: str, card: Card) -> None:
    async with transaction(store.pool) as connection:
        _, _, before = await store.lock_automatic(connection, organization_id)
        await write_automatic(connection, before=before, after=show_card(before, card), now=store.clock())


async def remove_saved_card(store: TopUpStore, organization_id: str, *, removed_at_stripe: str = "") -> None:
    """Remove the organization's card and switch automatic top-ups off. A repeat changes nothing.

    With `removed_at_stripe` only if it is this card; else it is detached by `detach_cards`.
    """

    async def once() -> None:
        async with transaction(store.pool) as connection:
            _, _, before = await store.lock_automatic(connection, organization_id)
            if removed_at_stripe in {"", before.payment_method_id}:
                after = remove_card(before, at_stripe=bool(removed_at_stripe))
                await write_automatic(connection, before=before, after=after, now=store.clock())

    await retry_transient(once)
    await store.failpoint("commit remove card")


async def detach_cards(store: TopUpStore, stripe_client: StripeClient, *, limit: int) -> int:
    """Detach at most `limit` cards at Stripe that are no longer used here; returns how many."""
    found = await find_everywhere(store.pool, SQL.find_methods_to_detach, {"limit": limit})
    results = await asyncio.gather(*(_detach(store, stripe_client, *row) for row in found.rows), return_exceptions=True)
    for result, (organization_id, _) in zip(results, found.rows, strict=True):
        if isinstance(result, StripeCallError):
            _log.warning("a card was not detached", organization_id=organization_id, why=result.reason)
        elif isinstance(result, Exception):
            raise result
    return sum(result is None for result in results)


async def _detach(store: TopUpStore, stripe_client: StripeClient, organization_id: str, payment_method_id: str) -> None:
    try:
        await stripe_client.detach_card(payment_method_id)
    except (StripeNotFound, StripeRefused):
        _log.info("a card was detached before", organization_id=organization_id)
    values = {"organization_id": organization_id, "payment_method_id": payment_method_id}
    async with acquire(store.pool) as connection:
        await connection.execute(SQL.remove_detached, values)
    await store.failpoint("commit detach")
