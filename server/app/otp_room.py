"""Builds the room of codes, admission, sending and verifying."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

from server.app.foundations import Foundations
from server.otps.admission import Admitted
from server.otps.dispatch import Dispatcher
from server.otps.errands import errand_of
from server.otps.guessing import GuessLimits
from server.otps.limits import SendLimits
from server.otps.orders import Orders
from server.otps.outcomes import Fallbacks, Outcomes
from server.otps.pumping import Served
from server.otps.sending import Sender
from server.otps.targets import Targets
from server.otps.verifying import Verifier
from server.providers import open_channels
from server.rpc.otp_service import OtpRoom
from server.settings import Settings
from server.watch.deliveries import watch_deliveries
from server.watch.night_watch import Round
from server.watch.retention import Kept, watch_retention


async def open_otp_room(stack: AsyncExitStack, foundations: Foundations) -> tuple[OtpRoom, Sequence[Round]]:
    """The room, and the rounds that the night watch goes for it; the stack closes it.

    Raises ValueError for a setting that cannot be used.
    """
    settings, pool, vault = foundations.settings, foundations.pool, foundations.vault
    delivery, lease = settings.delivery, timedelta(seconds=settings.delivery.lease_seconds)
    check_lease(settings)
    channels = open_channels(settings, foundations.templates, console=foundations.console)
    for channel in channels.values():
        stack.push_async_callback(channel.close)
    prices = {name: foundations.pricing.channel_credits[name] for name in channels}
    limits, served = _send_limits(settings), _served(settings)
    outcomes = Outcomes(
        pool,
        batching=foundations.batching,
        lease=lease,
        fallbacks=Fallbacks(Targets(vault, prices, served), limits),
    )
    dispatcher = Dispatcher(channels, vault, outcomes, concurrency=delivery.concurrency, queue=delivery.queue)
    stack.push_async_callback(dispatcher.drain, settings.drain_seconds)

    def hand_over(admitted: Sequence[Admitted]) -> None:
        dispatcher.hand_over([errand_of(one, lease=lease) for one in admitted])

    orders = Orders(
        pool,
        vault,
        Sender(pool, limits=limits, lease=lease, hand_over=hand_over),
        channel_credits=prices,
        batching=foundations.batching,
        served=served,
        templates=foundations.templates,
    )
    verifier = Verifier(
        pool,
        vault,
        limits=_guess_limits(settings),
        batching=foundations.batching,
    )
    stack.push_async_callback(verifier.drain)
    stack.push_async_callback(orders.drain)
    room = OtpRoom(
        pool=pool,
        vault=vault,
        orders=orders,
        verifier=verifier,
        cooldown=limits.cooldown,
        refund_accepted=delivery.refund_reported_failures,
    )
    kept = _kept(settings)
    return room, [
        Round("deliveries", 1, lambda now: watch_deliveries(pool, vault, dispatcher, lease=lease, now=now, limit=500)),
        Round("retention", 60, lambda now: watch_retention(pool, kept, now=now)),
    ]


def check_lease(settings: Settings) -> None:
    """Raise ValueError when asking every provider of a channel may outlast a delivery's lease."""
    timeouts = {
        provider: getattr(settings, provider).timeout_seconds for provider in ("smtp", "whatsapp", "twilio", "vonage")
    }
    for providers in (settings.channel.email, settings.channel.whatsapp, settings.channel.sms):
        longest = sum(settings.channel.wait_seconds + timeouts.get(provider, 0) for provider in providers)
        if longest >= settings.delivery.lease_seconds:
            raise ValueError(
                f"PULSA_DELIVERY_LEASE_SECONDS: must exceed {longest:g}, what {'+'.join(providers)} may take"
            )


def _send_limits(settings: Settings) -> SendLimits:
    limit = settings.limit
    return SendLimits(
        cooldown=timedelta(seconds=limit.cooldown_seconds),
        sends_per_destination_per_hour=limit.sends_per_destination_per_hour,
        sends_per_destination_per_day=limit.sends_per_destination_per_day,
        sends_per_organization_per_minute=limit.sends_per_organization_per_minute,
        unverified_credits_per_country=limit.unverified_credits_per_country,
        unverified_credits_per_prefix=limit.unverified_credits_per_prefix,
        unverified_window=timedelta(hours=limit.unverified_window_hours),
    )


def _served(settings: Settings) -> Served:
    limit = settings.limit
    return Served(
        areas=limit.areas,
        blocked=limit.blocked_areas,
        prefix_digits=limit.unverified_prefix_digits if limit.unverified_credits_per_prefix else 0,
    )


def _guess_limits(settings: Settings) -> GuessLimits:
    limit = settings.limit
    return GuessLimits(
        wrong_guesses=limit.wrong_guesses,
        window=timedelta(hours=limit.guess_window_hours),
        free_guesses=limit.free_guesses,
    )


def _kept(settings: Settings) -> Kept:
    return Kept(
        destinations=timedelta(days=settings.delivery.destination_days),
        records=timedelta(days=settings.delivery.retention_days),
        guess_window=timedelta(hours=settings.limit.guess_window_hours),
        unverified_window=timedelta(hours=settings.limit.unverified_window_hours),
    )
