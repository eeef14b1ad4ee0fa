"""Opens the providers of each channel from the settings; a Route tries several of one channel in order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from pydantic import SecretStr

from server.clock import Clock
from server.providers.console import Console
from server.providers.guard import BreakerSettings, Guard, GuardSettings
from server.providers.provider import Channel, Message, Outcome, OutcomeKind, Provider
from server.providers.smtp import Smtp, SmtpSettings
from server.providers.templates import Templates
from server.providers.twilio import Twilio, TwilioSettings
from server.providers.vonage import Vonage, VonageSettings
from server.providers.whatsapp import WhatsApp, WhatsAppSettings
from server.setting_types import Group
from server.settings import Settings

TRY_NEXT: Final = frozenset({OutcomeKind.NOT_SENT, OutcomeKind.REJECTED_CONFIGURATION})
"""The outcomes after which the next provider of a channel is asked."""


class Route:
    """The providers of one channel, in order of preference.

    The next provider is called only after NOT_SENT and REJECTED_CONFIGURATION: after ACCEPTED or UNKNOWN it could send
    a second message, and REJECTED_DESTINATION it would repeat. A delivery may take as long as all of them together.
    """

    def __init__(self, providers: Sequence[Provider]) -> None:
        """Raises ValueError without a provider."""
        if not providers:
            raise ValueError("a route needs a provider")
        self._providers = tuple(providers)
        self.name = "+".join(provider.name for provider in providers)

    async def deliver(self, message: Message) -> Outcome:
        """The first outcome that is final; else the NOT_SENT with the earliest retry; else the first outcome."""
        refusals = []
        for provider in self._providers:
            outcome = await provider.deliver(message)
            if outcome.kind not in TRY_NEXT:
                return outcome
            refusals.append(outcome)
        transient = [outcome for outcome in refusals if outcome.kind is OutcomeKind.NOT_SENT]
        return min(transient, key=lambda outcome: outcome.retry_after_seconds or 0.0) if transient else refusals[0]

    async def close(self) -> None:
        """Close every provider."""
        for provider in self._providers:
            await provider.close()


def open_providers(
    settings: Settings,
    templates: Templates,
    *,
    console: Console | None,
    clock: Clock,
    mail_token: Callable[[UUID], str] | None = None,
) -> dict[Channel, Provider]:
    """The provider, or the Route of providers, of each channel that has one; each provider is behind a Guard.

    Opens no connections. `mail_token` makes the token of a delivery's mail; without it mails carry none. `console` is
    the console provider of a development machine, None elsewhere. Raises ValueError, which names the setting, when a
    provider lacks a required setting.
    """
    openers: Mapping[str, Callable[[], Provider]] = {
        "console": lambda: _required_console(console),
        "smtp": lambda: _open_smtp(settings, templates, clock, mail_token),
        "whatsapp": lambda: WhatsApp(
            WhatsAppSettings(**_group_values(settings, "whatsapp", "phone_number_id", "access_token", "template_name"))
        ),
        "twilio": lambda: Twilio(
            TwilioSettings(**_group_values(settings, "twilio", "account_sid", "auth_token", "sender")),
            templates,
            clock=clock,
        ),
        "vonage": lambda: Vonage(
            VonageSettings(**_group_values(settings, "vonage", "api_key", "api_secret", "sender")),
            templates,
            clock=clock,
        ),
    }
    limits = settings.channel
    guard = GuardSettings(
        concurrency=limits.concurrency,
        wait_seconds=limits.wait_seconds,
        breaker=BreakerSettings(limits.failures_to_open, limits.cooldown_seconds),
    )
    opened: dict[Channel, Provider] = {}
    for channel in Channel:
        guarded = [
            Guard(openers[name](), replace(guard, timeout_seconds=timeout_seconds(settings, name)), clock=clock)
            for name in provider_names(settings, channel)
        ]
        if guarded:
            opened[channel] = guarded[0] if len(guarded) == 1 else Route(guarded)
    return opened


def provider_names(settings: Settings, channel: Channel) -> tuple[str, ...]:
    """The names of a channel's providers, in order of preference: its setting, such as PULSA_CHANNEL_SMS."""
    names: tuple[str, ...] = getattr(settings.channel, channel.field)
    return names


def timeout_seconds(settings: Settings, name: str) -> float:
    """How long a call of a provider may take. The console answers at once."""
    return 0.0 if name == "console" else float(getattr(settings, name).timeout_seconds)


def open_mailer(
    settings: Settings, templates: Templates, *, console: Console | None, clock: Clock
) -> Smtp | Console | None:
    """The provider that mails billing contacts: the first one of the e-mail channel; None without one."""
    if not settings.channel.email:
        return None
    if settings.channel.email[0] == "console":
        return _required_console(console)
    return _open_smtp(settings, templates, clock)


def _open_smtp(
    settings: Settings, templates: Templates, clock: Clock, mail_token: Callable[[UUID], str] | None = None
) -> Smtp:
    values = SmtpSettings(**_group_values(settings, "smtp", "host", "sender"))
    return Smtp(values, templates, clock=clock, mail_token=mail_token)


def _required_console(console: Console | None) -> Console:
    if console is None:
        raise ValueError("PULSA_CHANNEL_CONSOLE: must be true for the provider console, which is for development only")
    return console


def _group_values(settings: Settings, group: str, *required: str) -> dict[str, Any]:
    """The values of a group of settings, secrets revealed. Raises ValueError when a required one is empty."""
    chosen: Group = getattr(settings, group)
    values = {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in chosen}
    for name in required:
        if not values[name]:
            raise ValueError(f"PULSA_{group.upper()}_{name.upper()}: is needed by the provider {group}")
    return values
