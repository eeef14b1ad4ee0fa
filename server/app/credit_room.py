"""Builds the room of accounts, ledger, pricing and top-ups."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

from server.app.foundations import Foundations, needed
from server.credits.balance_watch import BalanceWatch
from server.credits.balances import Balances
from server.credits.stripe_events import StripeInbox
from server.credits.top_up_changes import TopUpChanges
from server.credits.top_up_settlement import TopUpTerms
from server.credits.top_ups import TopUps
from server.payments.client import Payments
from server.providers import open_mailer
from server.rpc.credit_service import CreditRoom
from server.settings import Settings
from server.stops import Reached
from server.watch.night_watch import Round
from server.watch.notices import watch_notices
from server.watch.stripe_events import watch_stripe_events, watch_undelivered_events
from server.watch.top_ups import watch_drift, watch_top_ups

_DAY_SECONDS = 24 * 60 * 60
_BALANCE_POLL_SECONDS = 0.25
_BALANCE_SPENDING_SECONDS = 1.0


def open_credit_room(
    stack: AsyncExitStack, foundations: Foundations, *, reached: Reached
) -> tuple[CreditRoom, Sequence[Round]]:
    """The room, and the rounds that the night watch goes for it; the stack closes it.

    Raises SettingsError, OSError or ValueError for a setting that cannot be used.
    """
    settings, pool, pricing = foundations.settings, foundations.pool, foundations.pricing
    payments = open_payments(settings, reached)
    stack.push_async_callback(payments.close)
    terms = TopUpTerms(
        environment=settings.environment,
        livemode=payments.livemode,
        days_until_due=settings.stripe.days_until_due,
        expire_grace=timedelta(hours=settings.stripe.expire_grace_hours),
        trust_out_of_band=settings.stripe.trust_out_of_band,
        payment_method_types=settings.stripe.payment_methods,
        lease=timedelta(seconds=settings.stripe.lease_seconds),
    )
    changes = TopUpChanges(pool, terms, low_balance_threshold=pricing.low_balance_threshold, reached=reached)
    top_ups = TopUps(changes, payments, pricing)
    secrets = needed(settings.stripe.webhook_secrets, "PULSA_STRIPE_WEBHOOK_SECRETS").get_secret_value().split(",")
    inbox = StripeInbox(changes, payments, secrets=secrets, account_id=settings.stripe.account_id)
    balances = Balances(
        pool,
        low_balance_threshold=pricing.low_balance_threshold,
        batching=foundations.batching,
    )
    for close in (top_ups.close, inbox.close, balances.drain):
        stack.push_async_callback(close)
    room = CreditRoom(
        pool=pool,
        pricing=pricing,
        balances=balances,
        balance_watch=BalanceWatch(
            balances, poll_seconds=_BALANCE_POLL_SECONDS, spending_seconds=_BALANCE_SPENDING_SECONDS
        ),
        top_ups=top_ups,
        stripe_inbox=inbox,
        stripe_wait_seconds=settings.stripe.wait_seconds,
        deliveries_kept=timedelta(days=settings.delivery.retention_days),
    )
    rounds = [
        Round("top-ups", 1, lambda now: watch_top_ups(top_ups, now=now)),
        Round("stripe events", 1, lambda now: watch_stripe_events(inbox, now=now)),
        Round("undelivered stripe events", 300, lambda now: watch_undelivered_events(inbox, now=now)),
        Round(
            "drift",
            _DAY_SECONDS,
            lambda now: watch_drift(pool, payments, environment=settings.environment, now=now),
        ),
    ]
    if mailer := open_mailer(settings, foundations.templates, console=foundations.console):
        stack.push_async_callback(mailer.close)
        rounds.append(Round("notices", 1, lambda now: watch_notices(pool, mailer.mail, now=now)))
    return room, rounds


def open_payments(settings: Settings, reached: Reached) -> Payments:
    """The Stripe account of the settings. Raises SettingsError without a key, ValueError for too short a lease."""
    payments = Payments(
        api_key=needed(settings.stripe.api_key, "PULSA_STRIPE_API_KEY").get_secret_value(),
        base_url=settings.stripe.base_url,
        api_version=settings.stripe.api_version,
        timeout_seconds=settings.stripe.timeout_seconds,
        reached=reached,
    )
    if payments.deadline_seconds >= settings.stripe.lease_seconds:
        raise ValueError(
            f"PULSA_STRIPE_LEASE_SECONDS: must exceed {payments.deadline_seconds:g}, what a call to Stripe may take"
        )
    return payments
