"""The hallway: builds everything once and takes it down in order. The only file that knows everyone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from prometheus_client import REGISTRY, CollectorRegistry
from pulsa.credit.v1 import credit_service_pb2
from pulsa.otp.v1 import otp_service_pb2

from server.channels.console import Console
from server.channels.templates import load_templates
from server.credits.balance_watch import BalanceWatch
from server.credits.balances import Balances
from server.credits.pricing import Pricing, load_pricing
from server.credits.stripe_events import StripeInbox
from server.credits.top_up_changes import TopUpChanges
from server.credits.top_up_settlement import TopUpTerms
from server.credits.top_ups import TopUps
from server.database.pool import Pool, open_pool
from server.environment import SettingsError
from server.otps.admission import Admitted
from server.otps.dispatch import Dispatcher
from server.otps.errands import errand_of
from server.otps.guessing import GuessLimits
from server.otps.limits import SendLimits
from server.otps.orders import Orders
from server.otps.outcomes import Outcomes
from server.otps.sending import Sender
from server.otps.vault import Vault
from server.otps.verifying import Verifier
from server.payments.client import Payments
from server.providers import open_channels
from server.rpc.certificates import TlsFiles
from server.rpc.credit_service import CreditRoom, CreditService
from server.rpc.door import Door
from server.rpc.otp_service import OtpRoom, OtpService
from server.rpc.serving import GrpcServer, Listening, start_server
from server.rpc.tokens import TokenVerifier
from server.settings import Settings
from server.stops import Reached, go_on
from server.watch.deliveries import watch_deliveries
from server.watch.night_watch import NightWatch, Round
from server.watch.stripe_events import watch_stripe_events, watch_undelivered_events
from server.watch.top_ups import watch_top_ups

Value = TypeVar("Value")

CREDIT_SERVICE = credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"]
OTP_SERVICE = otp_service_pb2.DESCRIPTOR.services_by_name["OtpService"]


@dataclass(frozen=True, slots=True)
class Foundations:
    """What both rooms stand on."""

    settings: Settings
    pool: Pool
    pricing: Pricing
    vault: Vault


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    database_url: str,
    console: Console | None = None,
    reached: Reached = go_on,
    registry: CollectorRegistry = REGISTRY,
) -> AsyncIterator[GrpcServer]:
    """The whole server, listening; drained when the block ends. The schema must be up to date.

    Raises SettingsError for what only shows when it is used: a file that is not there, a key that is none.
    """
    async with AsyncExitStack() as stack:
        try:
            foundations = await _lay_foundations(stack, settings, database_url)
            payments = _open_payments(stack, settings, reached)
            credit_room, top_up_rounds = _open_credit_room(stack, foundations, payments, reached)
            otp_room, otp_rounds = await _open_otp_room(stack, foundations, console)
            verifier = TokenVerifier(
                _needed(settings.token.keys, "PULSA_TOKEN_KEYS"),
                audience=settings.token.audience,
                leeway_seconds=settings.token.leeway_seconds,
            )
        except (OSError, ValueError) as error:
            raise SettingsError(str(error)) from error
        stack.push_async_callback(NightWatch([*top_up_rounds, *otp_rounds]).stop)
        keys = asyncio.create_task(verifier.keep_current())
        stack.callback(keys.cancel)
        door = Door(
            verifier,
            registry=registry,
            calls_at_once=settings.limit.calls_at_once,
            streams_at_once=settings.limit.streams_at_once,
        )
        services = {CREDIT_SERVICE: CreditService(credit_room), OTP_SERVICE: OtpService(otp_room)}
        server = await start_server(services, door=door, listening=_listening(settings))
        try:
            yield server
        finally:
            await server.drain(lame_duck_seconds=settings.lame_duck_seconds, grace_seconds=settings.drain_seconds)


async def _lay_foundations(stack: AsyncExitStack, settings: Settings, database_url: str) -> Foundations:
    vault = Vault(settings.secret.key_ring(), digest_secret=settings.secret.digest())
    pricing = load_pricing(settings.pricing)
    database = settings.database
    pool = await open_pool(database_url, size=database.connections, timeout_seconds=database.timeout_seconds)
    stack.push_async_callback(pool.close)
    return Foundations(settings, pool, pricing, vault)


def _open_payments(stack: AsyncExitStack, settings: Settings, reached: Reached) -> Payments:
    payments = Payments(
        api_key=_needed(settings.stripe.api_key, "PULSA_STRIPE_API_KEY").get_secret_value(),
        base_url=settings.stripe.base_url,
        api_version=settings.stripe.api_version,
        timeout_seconds=settings.stripe.timeout_seconds,
        reached=reached,
    )
    stack.push_async_callback(payments.close)
    return payments


def _open_credit_room(
    stack: AsyncExitStack, foundations: Foundations, payments: Payments, reached: Reached
) -> tuple[CreditRoom, Sequence[Round]]:
    settings, pool, pricing = foundations.settings, foundations.pool, foundations.pricing
    terms = TopUpTerms(
        environment=settings.environment,
        livemode=payments.livemode,
        days_until_due=settings.stripe.days_until_due,
        expire_grace=timedelta(hours=settings.stripe.expire_grace_hours),
        trust_out_of_band=settings.stripe.trust_out_of_band,
        payment_method_types=settings.stripe.payment_methods,
    )
    changes = TopUpChanges(pool, terms, low_balance_threshold=pricing.low_balance_threshold, reached=reached)
    top_ups = TopUps(changes, payments, pricing)
    secrets = _needed(settings.stripe.webhook_secrets, "PULSA_STRIPE_WEBHOOK_SECRETS").get_secret_value().split(",")
    inbox = StripeInbox(changes, payments, secrets=secrets, account_id=settings.stripe.account_id)
    balances = Balances(
        pool,
        low_balance_threshold=pricing.low_balance_threshold,
        batch_size=settings.delivery.batch_size,
        linger_seconds=settings.delivery.linger_ms / 1000,
    )
    for close in (top_ups.close, inbox.close, balances.drain):
        stack.push_async_callback(close)
    room = CreditRoom(
        pool=pool,
        pricing=pricing,
        balances=balances,
        balance_watch=BalanceWatch(balances, poll_seconds=0.25, spending_seconds=1.0),
        top_ups=top_ups,
        stripe_inbox=inbox,
        stripe_wait_seconds=settings.stripe.wait_seconds,
        deliveries_kept=timedelta(days=settings.delivery.retention_days),
    )
    rounds = [
        Round("top-ups", 1, lambda now: watch_top_ups(top_ups, now=now)),
        Round("stripe events", 1, lambda now: watch_stripe_events(inbox, now=now)),
        Round("undelivered stripe events", 300, lambda now: watch_undelivered_events(inbox, now=now)),
    ]
    return room, rounds


async def _open_otp_room(
    stack: AsyncExitStack, foundations: Foundations, console: Console | None
) -> tuple[OtpRoom, Sequence[Round]]:
    settings, pool, vault = foundations.settings, foundations.pool, foundations.vault
    delivery, lease = settings.delivery, timedelta(seconds=settings.delivery.lease_seconds)
    channels = open_channels(settings, load_templates(settings.channel.templates), console=console)
    for channel in channels.values():
        stack.push_async_callback(channel.close)
    outcomes = Outcomes(pool, batch_size=delivery.batch_size, linger_seconds=delivery.linger_ms / 1000)
    dispatcher = Dispatcher(channels, vault, outcomes, concurrency=delivery.concurrency, queue=delivery.queue)
    stack.push_async_callback(dispatcher.drain, settings.drain_seconds)

    def hand_over(admitted: Sequence[Admitted]) -> None:
        dispatcher.hand_over([errand_of(one, lease=lease) for one in admitted])

    limits = _send_limits(settings)
    sender = Sender(
        pool,
        limits=limits,
        lease=lease,
        hand_over=hand_over,
        batch_size=delivery.batch_size,
        linger_seconds=delivery.linger_ms / 1000,
    )
    verifier = Verifier(
        pool,
        vault,
        limits=_guess_limits(settings),
        batch_size=delivery.batch_size,
        linger_seconds=delivery.linger_ms / 1000,
    )
    stack.push_async_callback(verifier.drain)
    stack.push_async_callback(sender.drain)
    prices = {name: foundations.pricing.channel_credits[name] for name in channels}
    room = OtpRoom(
        pool=pool,
        vault=vault,
        orders=Orders(pool, vault, sender, channel_credits=prices),
        verifier=verifier,
        cooldown=limits.cooldown,
        refund_accepted=delivery.refund_reported_failures,
    )
    return room, [
        Round("deliveries", 1, lambda now: watch_deliveries(pool, vault, dispatcher, lease=lease, now=now, limit=500))
    ]


def _send_limits(settings: Settings) -> SendLimits:
    limit = settings.limit
    return SendLimits(
        cooldown=timedelta(seconds=limit.cooldown_seconds),
        sends_per_destination_per_hour=limit.sends_per_destination_per_hour,
        sends_per_destination_per_day=limit.sends_per_destination_per_day,
        sends_per_organization_per_minute=limit.sends_per_organization_per_minute,
    )


def _guess_limits(settings: Settings) -> GuessLimits:
    limit = settings.limit
    return GuessLimits(
        wrong_guesses=limit.wrong_guesses,
        window=timedelta(hours=limit.guess_window_hours),
        free_guesses=limit.free_guesses,
    )


def _tls_files(settings: Settings) -> TlsFiles:
    return TlsFiles(
        certificate_chain=_needed(settings.tls.certificate, "PULSA_TLS_CERTIFICATE"),
        private_key=_needed(settings.tls.key, "PULSA_TLS_KEY"),
        client_authorities=settings.tls.client_ca,
    )


def _listening(settings: Settings) -> Listening:
    return Listening(
        address=settings.listen,
        tls=_tls_files(settings) if settings.tls.certificate else None,
        share_port=settings.workers > 1,
        reflection=settings.reflection,
    )


def _needed(value: Value | None, name: str) -> Value:
    if value is None:
        raise SettingsError(f"{name}: is needed")
    return value
