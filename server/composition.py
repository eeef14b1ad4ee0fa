"""Composition root: creates every object once and closes them in reverse order. Only this module knows all others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from pulsa.credit.v1 import credit_service_pb2
from pulsa.event.v1 import event_service_pb2
from pulsa.otp.v1 import otp_service_pb2

from server.api.auth import TokenVerifier
from server.api.credit_service import CreditDependencies, CreditService
from server.api.event_service import EventDependencies, EventService
from server.api.interceptor import Interceptor
from server.api.otp_records import OtpDependencies
from server.api.otp_service import OtpService
from server.api.otp_settings import SettingsDependencies
from server.api.server import GrpcServer, ListenOptions, start_server
from server.api.tls import TlsFileError, TlsFiles
from server.background import Countdown, until_done
from server.clock import DatabaseClock
from server.credits.accounts import RequestMemory
from server.credits.balances import Balances, BalanceStreams
from server.credits.ledger import AuditKeys
from server.credits.pricing import Pricing, load_pricing
from server.credits.stripe.client import Failpoint, StripeClient
from server.credits.stripe.inbox import StripeInbox
from server.credits.top_ups.automatic_service import AutomaticTopUps
from server.credits.top_ups.service import TopUps, terms_of
from server.credits.top_ups.store import TopUpStore
from server.environment import SettingsError, naming_setting, required
from server.events.log import EventSwitches
from server.events.streams import EventStreams
from server.jobs import JobRunner, periodic_jobs, retention_periods
from server.keyrings import open_audit_keys, open_crypto, open_signing_keys, signing_secrets
from server.otps.admission import Admitted
from server.otps.crypto import Crypto
from server.otps.delivery.dispatcher import FRESH_FOR, Dispatcher
from server.otps.delivery.outbox import job_for
from server.otps.delivery.outcomes import Fallbacks, Outcomes
from server.otps.delivery.suppressions import Suppressions, Unsuppressed
from server.otps.operator import guess_limits, operator_settings
from server.otps.otp_events import LimitsReached
from server.otps.recipients import RecipientResolver
from server.otps.send import Sender
from server.otps.settings_cache import SettingsCache
from server.otps.verify import Verifier
from server.postgres.batcher import Batching
from server.postgres.conninfo import Timeouts
from server.postgres.pool import Connection, Pool, open_pool
from server.providers.console import Console
from server.providers.guard import LEASE_MARGIN
from server.providers.provider import Channel
from server.providers.routing import open_mailer, open_providers, provider_names, timeout_seconds
from server.providers.templates import Templates, load_templates
from server.settings import Database, Settings
from server.traces import Traces

CREDIT_SERVICE: Final = credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"]
EVENT_SERVICE: Final = event_service_pb2.DESCRIPTOR.services_by_name["EventService"]
OTP_SERVICE: Final = otp_service_pb2.DESCRIPTOR.services_by_name["OtpService"]

_TLS_SETTINGS: Final = {
    "certificate_chain": "PULSA_TLS_CERTIFICATE",
    "private_key": "PULSA_TLS_KEY",
    "client_authorities": "PULSA_TLS_CLIENT_CA",
}
"""The setting of each field of TlsFiles."""
_LEAST_DRAIN_SECONDS: Final = 2.0
"""For deliveries, when the calls have taken all the time of the drain."""
_BALANCE_POLL_SECONDS: Final = 0.25
_EVENT_POLL_SECONDS: Final = 0.25
_BALANCE_SPENDING_SECONDS: Final = 1.0


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    database_url: str,
    console: Console | None = None,
    failpoint: Failpoint | None = None,
    registry: CollectorRegistry = REGISTRY,
    clock: DatabaseClock | None = None,
) -> AsyncIterator[GrpcServer]:
    """Run the whole server while the block runs, then drain it. The database schema must be up to date.

    `clock` is a clock that has learned nothing yet, of a machine whose clock a test chooses; None: of this machine.
    Raises SettingsError for a setting whose value turns out to be unusable, such as a missing file or a malformed key.
    """
    async with AsyncExitStack() as stack:
        try:
            traces = _open_traces(stack, settings)  # first, as the drain has spans too
            shared = await open_shared(stack, settings, database_url, console, clock)
            credits = open_credits(stack, shared, failpoint=failpoint)
            otps = open_otps(stack, shared, credits.automatic_top_ups)
            runner = _start_jobs(stack, shared, credits, otps)
        except (OSError, ValueError) as error:
            raise SettingsError(str(error)) from error
        stack.push_async_callback(runner.stop)
        interceptor = _open_interceptor(stack, settings, registry, traces)
        services = {CREDIT_SERVICE: credits.service, EVENT_SERVICE: open_events(shared), OTP_SERVICE: otps.service}
        try:
            server = await start_server(services, interceptor=interceptor, listening=_listen_options(settings))
        except TlsFileError as error:
            raise SettingsError(f"{_TLS_SETTINGS[error.field]}: {error.reason}") from error
        except RuntimeError as error:
            raise SettingsError(f"PULSA_LISTEN: {settings.listen} cannot be listened on") from error
        shared.pool.on_change = server.set_database_health
        server.set_database_health(shared.pool.is_available)
        try:
            yield server
        finally:
            shared.drain.start(after=settings.lame_duck_seconds)
            await server.drain(lame_duck_seconds=settings.lame_duck_seconds, grace_seconds=settings.drain_seconds)


@dataclass(frozen=True, slots=True)
class SharedDependencies:
    """What both services use."""

    settings: Settings
    pool: Pool
    switches: EventSwitches
    memory: RequestMemory
    pricing: Pricing
    crypto: Crypto
    audit_keys: AuditKeys | None
    templates: Templates
    organization_settings: SettingsCache
    console: Console | None
    """Prints messages instead of sending them; only in development."""
    drain: Countdown
    """Of the calls in flight, and then of the deliveries."""

    @property
    def batching(self) -> Batching:
        """How calls are batched into transactions."""
        delivery = self.settings.delivery
        return Batching(
            size=delivery.batch_size,
            linger_seconds=delivery.linger_ms / 1000,
            shards=self.pool.shards,
            flushes=self.settings.database.flushes,
            busy_seconds=self.settings.database.busy_seconds,
        )


@dataclass(frozen=True, slots=True)
class OpenCredits:
    """The credit service and the objects that its periodic jobs use."""

    service: CreditService
    stripe_client: StripeClient
    store: TopUpStore
    top_ups: TopUps
    automatic_top_ups: AutomaticTopUps
    inbox: StripeInbox


@dataclass(frozen=True, slots=True)
class OpenOtps:
    """The OTP service and the objects that its periodic jobs use."""

    service: OtpService
    dispatcher: Dispatcher
    outcomes: Outcomes
    suppressions: Suppressions


async def open_shared(
    stack: AsyncExitStack,
    settings: Settings,
    database_url: str,
    console: Console | None,
    clock: DatabaseClock | None = None,
) -> SharedDependencies:
    """Create the shared dependencies; the stack closes them. Raises SettingsError for an unusable setting."""
    crypto = open_crypto(settings)
    with naming_setting("PULSA_PRICING"):
        pricing = load_pricing(settings.pricing)
    with naming_setting("PULSA_CHANNEL_TEMPLATES"):
        templates = load_templates(settings.channel.templates)
    database = settings.database
    memory = RequestMemory(settings.delivery.request_life)
    organization_settings = SettingsCache(operator_settings(settings, memory, templates))

    async def read(connection: Connection) -> None:
        await memory.read(connection)
        await organization_settings.read(connection)

    pool = await open_pool(
        database_url,
        size=database.connections,
        timeouts=timeouts_of(database),
        clock=clock,
        on_connect=read,
        entry_urls=entry_urls(database),
    )
    stack.push_async_callback(pool.close)
    keys = open_audit_keys(settings)
    return SharedDependencies(
        settings,
        pool,
        EventSwitches(pool),
        memory,
        pricing,
        crypto,
        keys,
        templates,
        organization_settings,
        console,
        Countdown(settings.drain_seconds),
    )


def entry_urls(database: Database) -> list[str]:
    """The URLs of further entry nodes of a Citus cluster."""
    return database.urls.get_secret_value().split() if database.urls else []


def timeouts_of(database: Database) -> Timeouts:
    """The time-outs of the pool."""
    return Timeouts(
        connection=database.timeout_seconds,
        transaction=database.transaction_seconds,
        lock=database.lock_seconds,
        job=database.job_seconds,
        idle_in_transaction=database.idle_seconds,
    )


def open_credits(
    stack: AsyncExitStack, shared: SharedDependencies, *, failpoint: Failpoint | None = None
) -> OpenCredits:
    """Create the credit service; the stack closes it. Raises SettingsError for an unusable setting."""
    settings, pool, pricing = shared.settings, shared.pool, shared.pricing
    stripe_client = open_stripe(settings, failpoint)
    stack.push_async_callback(stripe_client.close)
    terms = terms_of(settings, livemode=stripe_client.livemode, memory=shared.memory)
    store = TopUpStore(
        pool,
        terms,
        low_balance_threshold=pricing.low_balance_threshold,
        audit_keys=shared.audit_keys,
        clock=pool.now,
        failpoint=failpoint,
    )
    top_ups = TopUps(store, stripe_client, pricing)
    automatic_top_ups = AutomaticTopUps(store, stripe_client, pricing, top_ups)
    inbox = StripeInbox(store, stripe_client, secrets=signing_secrets(settings), account_id=settings.stripe.account_id)
    balances = Balances(pool, low_balance_threshold=pricing.low_balance_threshold, batching=shared.batching)
    for close in (top_ups.close, automatic_top_ups.close, inbox.close, balances.drain):
        stack.push_async_callback(close)
    dependencies = CreditDependencies(
        pool=pool,
        pricing=pricing,
        balances=balances,
        balance_streams=BalanceStreams(
            balances,
            poll_seconds=_BALANCE_POLL_SECONDS,
            spending_seconds=_BALANCE_SPENDING_SECONDS,
            repeat_seconds=settings.repeat_balance_seconds,
        ),
        top_ups=top_ups,
        automatic_top_ups=automatic_top_ups,
        stripe_inbox=inbox,
        stripe_wait_seconds=settings.stripe.wait_seconds,
        deliveries_kept=timedelta(days=settings.delivery.retention_days),
        memory=shared.memory,
        audit_keys=shared.audit_keys,
    )
    return OpenCredits(CreditService(dependencies), stripe_client, store, top_ups, automatic_top_ups, inbox)


def open_events(shared: SharedDependencies) -> EventService:
    """Create the event service."""
    streams = EventStreams(
        shared.pool, poll_seconds=_EVENT_POLL_SECONDS, repeat_seconds=shared.settings.repeat_balance_seconds
    )
    return EventService(EventDependencies(pool=shared.pool, streams=streams))


def open_stripe(settings: Settings, failpoint: Failpoint | None = None) -> StripeClient:
    """Create the client of the Stripe account. Raises SettingsError without an API key or for too short a lease."""
    stripe_client = StripeClient(
        api_key=required(settings.stripe.api_key, "PULSA_STRIPE_API_KEY").get_secret_value(),
        base_url=settings.stripe.base_url,
        api_version=settings.stripe.api_version,
        timeout_seconds=settings.stripe.timeout_seconds,
        failpoint=failpoint,
    )
    if stripe_client.deadline_seconds >= settings.stripe.lease_seconds:
        raise SettingsError(
            f"PULSA_STRIPE_LEASE_SECONDS: must exceed {stripe_client.deadline_seconds:g}, the longest call to Stripe"
        )
    return stripe_client


def open_otps(stack: AsyncExitStack, shared: SharedDependencies, automatic_top_ups: AutomaticTopUps) -> OpenOtps:
    """Create the OTP service; the stack closes it. Raises SettingsError or ValueError for an unusable setting.

    automatic_top_ups learns of each send once it is committed.
    """
    settings, pool, crypto, clock = shared.settings, shared.pool, shared.crypto, shared.pool.now
    delivery, lease = settings.delivery, timedelta(seconds=settings.delivery.lease_seconds)
    check_lease(settings)
    suppressions = Suppressions(pool, crypto, period=timedelta(days=delivery.suppression_days), clock=clock)
    providers = open_providers(
        settings, shared.templates, console=shared.console, clock=clock, mail_token=crypto.mail_token
    )
    if email := providers.get(Channel.EMAIL):
        providers[Channel.EMAIL] = Unsuppressed(email, suppressions)
    for provider in providers.values():
        stack.push_async_callback(provider.close)
    prices = {channel: shared.pricing.channel_credits[channel] for channel in providers}
    own_settings = shared.organization_settings
    recipients, limits = RecipientResolver(crypto, prices, own_settings.operator.areas), own_settings.operator.limits
    linger_seconds = delivery.outcome_linger_ms / 1000
    outcomes = Outcomes(
        pool,
        batching=replace(shared.batching, size=delivery.outcome_batch_size, linger_seconds=linger_seconds),
        lease=lease,
        clock=clock,
        fallbacks=Fallbacks(recipients, limits, own_settings),
        switches=shared.switches,
    )
    dispatcher = Dispatcher(
        providers,
        crypto,
        outcomes,
        concurrency=delivery.concurrency,
        queue=delivery.queue,
        clock=clock,
        # Only a mail relay may take minutes for its reply; its time-out is not bounded by the lease.
        long_calls={Channel.EMAIL} if "smtp" in settings.channel.email else (),
    )
    stack.push_async_callback(lambda: dispatcher.drain(shared.drain.left(least=_LEAST_DRAIN_SECONDS)))

    dependencies = OtpDependencies(
        pool=pool,
        crypto=crypto,
        recipients=recipients,
        sender=Sender(
            pool,
            crypto,
            recipients,
            limits=limits,
            lease=lease,
            dispatch=partial(_dispatch, dispatcher, automatic_top_ups, lease),
            clock=clock,
            templates=shared.templates,
            limits_reached=LimitsReached(shared.switches),
            settings=own_settings,
        ),
        verifier=Verifier(pool, crypto, limits=guess_limits(settings), clock=clock, switches=shared.switches),
        switches=shared.switches,
        clock=clock,
        batching=shared.batching,
        cooldown=limits.cooldown,
        suppressions=suppressions,
        free_places=lambda: dispatcher.free_places,
        batch_items_at_once=settings.limit.batch_items_at_once,
        batch_items_per_transaction=delivery.batch_items,
        settings=SettingsDependencies(pool, own_settings, shared.pricing.low_balance_threshold),
    )
    service = OtpService(dependencies)
    stack.push_async_callback(service.drain)
    return OpenOtps(service, dispatcher, outcomes, suppressions)


def _dispatch(
    dispatcher: Dispatcher,
    automatic_top_ups: AutomaticTopUps,
    lease: timedelta,
    admitted: Sequence[Admitted],
) -> None:
    """Send what was just committed, and order the top-ups that it calls for."""
    dispatcher.enqueue([job_for(one, lease=lease) for one in admitted])
    if automatic_top_ups.thresholds:
        for send, _, balance_after, *_ in admitted:
            credits = send.recipient.credits
            automatic_top_ups.note_spending(send.organization_id, credits=credits, balance_after=balance_after)


def check_lease(settings: Settings) -> None:
    """Raise SettingsError when trying every provider of a channel may take longer than the lease of a delivery.

    With what precedes a call and follows it.
    """
    for channel in Channel:
        providers = provider_names(settings, channel)
        timeouts = [timeout_seconds(settings, name) for name in providers]
        longest = len(providers) * settings.channel.wait_seconds + sum(timeouts)
        longest += (FRESH_FOR + LEASE_MARGIN).total_seconds()
        if longest >= settings.delivery.lease_seconds:
            raise SettingsError(
                f"PULSA_DELIVERY_LEASE_SECONDS: must exceed {longest:g}, the longest time of {'+'.join(providers)} "
                "and of storing the outcome"
            )


def _start_jobs(stack: AsyncExitStack, shared: SharedDependencies, credits: OpenCredits, otps: OpenOtps) -> JobRunner:
    settings = shared.settings
    mailer = open_mailer(settings, shared.templates, console=shared.console, clock=shared.pool.now)
    if mailer is not None:
        stack.push_async_callback(mailer.close)
    return JobRunner(
        shared.pool,
        periodic_jobs(
            pool=shared.pool,
            crypto=shared.crypto,
            dispatcher=otps.dispatcher,
            outcomes=otps.outcomes,
            suppressions=otps.suppressions,
            switches=shared.switches,
            organization_settings=shared.organization_settings,
            settings_seconds=settings.organization.settings_seconds,
            lease=timedelta(seconds=settings.delivery.lease_seconds),
            periods=retention_periods(settings),
            stripe_client=credits.stripe_client,
            top_ups=credits.top_ups,
            automatic_top_ups=credits.automatic_top_ups,
            inbox=credits.inbox,
            environment=settings.environment,
            send_mail=mailer.mail if mailer else None,
            audit_keys=shared.audit_keys,
            signing_keys=open_signing_keys(settings),
        ),
    )


def _open_traces(stack: AsyncExitStack, settings: Settings) -> Traces | None:
    if settings.traces.endpoint is None:
        return None
    try:
        traces = Traces(
            endpoint=settings.traces.endpoint,
            ratio=settings.traces.ratio,
            environment=settings.environment,
            headers=settings.traces.header_fields,
        )
    except ImportError as error:
        raise SettingsError("PULSA_TRACES_ENDPOINT: needs pip install 'pulsa-server[traces]'") from error
    stack.push_async_callback(traces.close)
    stack.callback(asyncio.create_task(until_done("traces", traces.export)).cancel)
    return traces


def _open_interceptor(
    stack: AsyncExitStack, settings: Settings, registry: CollectorRegistry, traces: Traces | None
) -> Interceptor:
    with naming_setting("PULSA_TOKEN_KEYS"):
        verifier = TokenVerifier(
            required(settings.token.keys, "PULSA_TOKEN_KEYS"),
            audience=settings.token.audience,
            leeway_seconds=settings.token.leeway_seconds,
        )
    interceptor = Interceptor(
        verifier,
        registry=registry,
        calls_at_once=settings.limit.calls_at_once,
        streams_at_once=settings.limit.streams_at_once,
        traces=traces,
    )
    background = {
        "token keys": verifier.reload_on_change,
        "streams": interceptor.end_streams_with_their_tokens,
        "calls in flight": interceptor.metrics.publish_in_flight,
    }
    for name, work in background.items():
        stack.callback(asyncio.create_task(until_done(name, work)).cancel)
    return interceptor


def _listen_options(settings: Settings) -> ListenOptions:
    tls = settings.tls
    return ListenOptions(
        address=settings.listen,
        tls=TlsFiles(
            certificate_chain=tls.certificate,
            private_key=required(tls.key, "PULSA_TLS_KEY"),
            client_authorities=tls.client_ca,
        )
        if tls.certificate
        else None,
        share_port=settings.workers > 1,
        reflection=settings.reflection,
        calls_waiting=settings.limit.calls_waiting,
        calls_per_connection=settings.limit.calls_per_connection,
        keepalive_seconds=settings.keepalive_seconds,
    )
