"""Opens the windows: which providers carry which channel, as the settings say."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import SecretStr

from server.channels.breaker import BreakerSettings
from server.channels.channel import Channel, ChannelName
from server.channels.console import Console
from server.channels.guard import Guard, GuardSettings
from server.channels.route import Route
from server.channels.smtp import Smtp, SmtpSettings
from server.channels.templates import Templates
from server.channels.twilio import Twilio, TwilioSettings
from server.channels.vonage import Vonage, VonageSettings
from server.channels.whatsapp import WhatsApp, WhatsAppSettings
from server.settings import Settings
from server.settings.group import Group


def open_channels(settings: Settings, templates: Templates, *, console: Console | None) -> dict[ChannelName, Channel]:
    """The channels that have a provider. Connects to nothing yet. Only a development machine has a console.

    Raises ValueError, with a line that names the setting, when a provider lacks what it needs.
    """
    openers: Mapping[str, Callable[[], Channel]] = {
        "console": lambda: _needed_console(console),
        "smtp": lambda: _open_smtp(settings, templates),
        "whatsapp": lambda: WhatsApp(
            WhatsAppSettings(**_values(settings, "whatsapp", "phone_number_id", "access_token", "template_name"))
        ),
        "twilio": lambda: Twilio(
            TwilioSettings(**_values(settings, "twilio", "account_sid", "auth_token", "sender")), templates
        ),
        "vonage": lambda: Vonage(
            VonageSettings(**_values(settings, "vonage", "api_key", "api_secret", "sender")), templates
        ),
    }
    channel = settings.channel
    guard = GuardSettings(
        concurrency=channel.concurrency,
        wait_seconds=channel.wait_seconds,
        breaker=BreakerSettings(channel.failures_to_open, channel.cooldown_seconds),
    )
    wanted = {ChannelName.EMAIL: channel.email, ChannelName.WHATSAPP: channel.whatsapp, ChannelName.SMS: channel.sms}
    guarded = {
        name: [Guard(openers[provider](), guard) for provider in providers]
        for name, providers in wanted.items()
        if providers
    }
    return {name: channels[0] if len(channels) == 1 else Route(channels) for name, channels in guarded.items()}


def open_mailer(settings: Settings, templates: Templates, *, console: Console | None) -> Smtp | Console | None:
    """What mails billing contacts: the first provider of e-mail, or nothing without one."""
    if not settings.channel.email:
        return None
    if settings.channel.email[0] == "console":
        return _needed_console(console)
    return _open_smtp(settings, templates)


def _open_smtp(settings: Settings, templates: Templates) -> Smtp:
    return Smtp(SmtpSettings(**_values(settings, "smtp", "host", "sender")), templates)


def _needed_console(console: Console | None) -> Console:
    if console is None:
        raise ValueError("PULSA_CHANNEL_…: console shows codes, and is for development only")
    return console


def _values(settings: Settings, group: str, *needed: str) -> dict[str, Any]:
    """The fields of a group, secrets opened. Raises ValueError when a needed one is empty."""
    chosen: Group = getattr(settings, group)
    values = {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in chosen}
    for name in needed:
        if not values[name]:
            raise ValueError(f"PULSA_{group.upper()}_{name.upper()}: is needed by the provider {group}")
    return values
