"""Converts an organization's settings between protobuf messages and server.otps."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any, get_args

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from pulsa.otp.v1 import settings_pb2 as pb

from server.api.converters import CHANNELS, CHANNELS_BY_NUMBER, set_timestamp
from server.otps.effective_settings import EffectiveSettings
from server.otps.organization_settings import (
    BillingContact,
    DefaultFallback,
    OrganizationSettings,
    RefundPolicy,
    Sender,
    SettingsVersion,
)
from server.setting_types import NumberType, is_sender

_FIELDS = frozenset(pb.Settings.DESCRIPTOR.fields_by_name)
_NUMBER_TYPES: dict[int, NumberType] = {
    pb.NumberType.Value(f"NUMBER_TYPE_{each.upper()}"): each for each in get_args(NumberType)
}
"""By the number in the protos."""
_PLAIN = (
    *("brand_name", "email_sender_name", "locale", "code_length", "max_attempts", "allowed_areas", "blocked_areas"),
    *("sends_per_destination_per_hour", "sends_per_destination_per_day", "daily_credit_cap"),
)
"""Fields that are the same on both sides."""


def fields_of(settings: pb.Settings, mask: FieldMask) -> Collection[str]:
    """The fields that a valid mask names; of an empty one, those that are set."""
    if list(mask.paths) == ["*"]:
        return _FIELDS
    return frozenset(mask.paths or (field.name for field, _ in settings.ListFields()))


def chosen_settings(message: pb.Settings) -> OrganizationSettings:
    """Convert valid settings."""
    plain = {name: getattr(message, name) for name in _PLAIN}
    plain |= {name: tuple(plain[name]) for name in ("allowed_areas", "blocked_areas")}
    return OrganizationSettings(
        **plain,
        email_reply_to=is_sender(message.email_reply_to),
        ttl=_span(message, "ttl"),
        cooldown=_span(message, "cooldown"),
        number_types=tuple(_NUMBER_TYPES[number] for number in message.number_types),
        senders=tuple(
            Sender(channel=CHANNELS_BY_NUMBER[each.channel], country_code=each.country_code, sender_id=each.sender_id)
            for each in message.senders
        ),
        default_fallbacks=tuple(
            DefaultFallback(
                channel=CHANNELS_BY_NUMBER[each.fallback_channel],
                after_seconds=after.total_seconds() if (after := _span(each, "after")) else None,
            )
            for each in message.default_fallbacks
        ),
        refund_policy=RefundPolicy(pb.RefundPolicy.Name(message.refund_policy).removeprefix("REFUND_POLICY_"))
        if message.refund_policy
        else None,
        billing_contacts=tuple(
            BillingContact(email=each.contact_email, locale=each.locale, time_zone=each.time_zone)
            for each in message.billing_contacts
        ),
    )


def settings_message(settings: OrganizationSettings) -> pb.Settings:
    """Convert settings as an organization chose them."""
    return pb.Settings(
        **{name: getattr(settings, name) for name in _PLAIN},
        email_reply_to=settings.email_reply_to,
        ttl=_duration(settings.ttl),
        cooldown=_duration(settings.cooldown),
        number_types=[pb.NumberType.Value(f"NUMBER_TYPE_{each.upper()}") for each in settings.number_types],
        senders=[
            pb.Sender(channel=CHANNELS[each.channel], country_code=each.country_code, sender_id=each.sender_id)
            for each in settings.senders
        ],
        default_fallbacks=[
            pb.DefaultFallback(
                fallback_channel=CHANNELS[each.channel],
                after=_duration(None if each.after_seconds is None else timedelta(seconds=each.after_seconds)),
            )
            for each in settings.default_fallbacks
        ],
        refund_policy=pb.RefundPolicy.Value(f"REFUND_POLICY_{settings.refund_policy or 'UNSPECIFIED'}"),
        billing_contacts=[
            pb.BillingContact(contact_email=each.email, locale=each.locale, time_zone=each.time_zone)
            for each in settings.billing_contacts
        ],
    )


def effective_message(settings: EffectiveSettings, chosen: OrganizationSettings) -> pb.Settings:
    """What applies to sends: `chosen`, with the operator's defaults and limits."""
    message = settings_message(chosen)
    message.locale = settings.locale or "en"
    message.email_sender_name = settings.identity.email_sender_name
    message.code_length = settings.code_length
    message.ttl.FromTimedelta(settings.ttl)
    message.max_attempts = settings.max_attempts
    del message.number_types[:]
    message.number_types.extend(
        pb.NumberType.Value(f"NUMBER_TYPE_{each.upper()}") for each in sorted(settings.areas.number_types)
    )
    limits = settings.limits
    message.cooldown.FromTimedelta(limits.cooldown)
    message.sends_per_destination_per_hour = limits.sends_per_destination_per_hour
    message.sends_per_destination_per_day = limits.sends_per_destination_per_day
    policy = RefundPolicy.REPORTED_FAILURES if settings.refund_reported_failures else RefundPolicy.NOT_ACCEPTED
    message.refund_policy = pb.RefundPolicy.Value(f"REFUND_POLICY_{policy}")
    return message


def write_version(message: pb.SettingsVersion, version: SettingsVersion) -> None:
    """Fill in a version of the settings."""
    message.version = version.version
    message.settings.CopyFrom(settings_message(version.settings))
    message.changed_fields.paths.extend(version.changed_fields)
    message.updated_by = version.updated_by
    if version.create_time is not None:
        set_timestamp(message.update_time, version.create_time)


def _span(message: Any, field: str) -> timedelta | None:
    span: Duration = getattr(message, field)
    return span.ToTimedelta() if message.HasField(field) else None


def _duration(span: timedelta | None) -> Duration | None:
    if span is None:
        return None
    duration = Duration()
    duration.FromTimedelta(span)
    return duration
