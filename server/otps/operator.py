"""The operator's limits of sends and guesses, as the settings have them."""

from datetime import timedelta

from server.credits.accounts import RequestMemory
from server.environment import naming_setting
from server.otps.admission import SendLimits
from server.otps.destinations import LIBRARY_TIME, check_areas, library_time
from server.otps.effective_settings import OperatorSettings
from server.otps.guess_policy import GuessLimits
from server.otps.sms_pumping import AreaPolicy
from server.providers.templates import Templates
from server.settings import Settings


def operator_settings(settings: Settings, memory: RequestMemory, templates: Templates) -> OperatorSettings:
    """The defaults and limits of what organizations choose. Raises SettingsError for an unusable setting."""
    organization = settings.organization
    return OperatorSettings(
        areas=area_policy(settings),
        limits=_send_limits(settings, memory),
        refund_reported_failures=settings.delivery.refund_reported_failures,
        refund_choice=organization.refund_choice,
        sender_ids=frozenset(organization.senders),
        test_organizations=frozenset(organization.test),
        check_brand=templates.check_brand,
    )


def area_policy(settings: Settings) -> AreaPolicy:
    """Which numbers may be sent to; sets the metric of their age. Raises SettingsError for an area without numbers."""
    LIBRARY_TIME.set(library_time().timestamp())
    limit = settings.limit
    for name, areas in (("PULSA_LIMIT_AREAS", limit.areas), ("PULSA_LIMIT_BLOCKED_AREAS", limit.blocked_areas)):
        with naming_setting(name):
            check_areas(areas)
    return AreaPolicy(
        allowed=limit.areas,
        blocked=limit.blocked_areas,
        prefix_digits=limit.unverified_prefix_digits if limit.unverified_credits_per_prefix else 0,
        number_types=frozenset(limit.number_types),
        extra_prefixes=limit.extra_prefixes,
    )


def guess_limits(settings: Settings) -> GuessLimits:
    """The limits of wrong codes."""
    limit = settings.limit
    return GuessLimits(
        wrong_guesses=limit.wrong_guesses,
        window=timedelta(hours=limit.guess_window_hours),
        free_guesses=limit.free_guesses,
    )


def _send_limits(settings: Settings, memory: RequestMemory) -> SendLimits:
    limit = settings.limit
    return SendLimits(
        cooldown=timedelta(seconds=limit.cooldown_seconds),
        sends_per_destination_per_hour=limit.sends_per_destination_per_hour,
        sends_per_destination_per_day=limit.sends_per_destination_per_day,
        sends_per_organization_per_minute=limit.sends_per_organization_per_minute,
        unverified_credits_per_country=limit.unverified_credits_per_country,
        unverified_credits_per_prefix=limit.unverified_credits_per_prefix,
        unverified_window=timedelta(hours=limit.unverified_window_hours),
        memory=memory,
    )
