"""The rules of request fields, in step with the comments in protos/. server.api.validation applies them."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from email_validator import EmailNotValidError, validate_email
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpSettings
from pulsa.credit.v1.channel_pb2 import Channel
from pulsa.credit.v1.ledger_entry_pb2 import LedgerEntryKind
from pulsa.credit.v1.top_up_pb2 import TopUpStatus
from pulsa.otp.v1.delivery_pb2 import DeliveryStatus
from pulsa.otp.v1.otp_pb2 import OtpStatus
from pulsa.otp.v1.settings_pb2 import NumberType, RefundPolicy, Settings
from pulsa.otp.v1.suppression_pb2 import SuppressionReason

from server.ids import MAIL_TOKEN, ORGANIZATION_ID
from server.setting_types import AREA

# Control characters would corrupt logs and messages, PostgreSQL rejects NUL, and surrogates are not characters.
_CHARACTER: Final = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_MAXIMUM_EMAIL_LENGTH: Final = 254
_MAXIMUM_CREDITS: Final = 1_000_000_000
_MAXIMUM_METADATA_ENTRIES: Final = 10
_MAXIMUM_FILTER_VALUES: Final = 10
_MAXIMUM_USAGE_DAYS: Final = 92
_MAXIMUM_AREAS: Final = 300
_MAXIMUM_SENDS: Final = 1_000_000
_MAXIMUM_PAYLOAD_BYTES: Final = 262_144
_NANOS_PER_SECOND: Final = 1_000_000_000
_FIRST_SECOND: Final = -62_135_596_800
_LAST_SECOND: Final = 253_402_300_799
"""The range of google.protobuf.Timestamp: from 0001-01-01 to the end of 9999, in seconds of Unix time."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule of a field's value: its description and a check of the value."""

    description: str
    holds: Callable[[Any], object]
    """Truthy for a valid value. Must be cheap: it runs for every request."""


def _matches(pattern: str, description: str) -> Rule:
    return Rule(description, re.compile(pattern).fullmatch)


def _text(shortest: int, longest: int) -> Rule:
    length = f"{shortest} to {longest} characters" if shortest else f"at most {longest} characters"
    return _matches(f"{_CHARACTER}{{{shortest},{longest}}}", f"{length}, without control characters")


def _whole(smallest: int, largest: int, description: str) -> Rule:
    return Rule(description, lambda value: smallest <= value <= largest)


def _some_of(known: frozenset[int], what: str) -> Rule:
    return Rule(
        f"at most {_MAXIMUM_FILTER_VALUES} {what}",
        lambda values: len(values) <= _MAXIMUM_FILTER_VALUES and known.issuperset(values),
    )


def _is_email(value: str) -> bool:
    if len(value) > _MAXIMUM_EMAIL_LENGTH:  # checked first: to normalize a megabyte of accents takes minutes
        return False
    try:
        validate_email(value, check_deliverability=False)
    except EmailNotValidError:
        return False
    return True


def _is_reply_to(value: str) -> bool:
    return not value or (value.rpartition("@")[0].isascii() and _is_email(value))


def _are_areas(values: Collection[str]) -> bool:
    return len(values) <= _MAXIMUM_AREAS and all(map(AREA.fullmatch, values))


def _is_time_zone(value: str) -> bool:
    if not _TIME_ZONE.fullmatch(value):
        return False
    try:
        ZoneInfo(value or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _is_day(value: str) -> bool:
    if not _DAY.fullmatch(value):
        return False
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True


def _lasts(shortest_seconds: int, longest_seconds: int) -> Callable[[Duration], bool]:
    shortest, longest = shortest_seconds * _NANOS_PER_SECOND, longest_seconds * _NANOS_PER_SECOND

    def holds(value: Duration) -> bool:
        nanos = value.nanos
        return 0 <= nanos < _NANOS_PER_SECOND and shortest <= value.seconds * _NANOS_PER_SECOND + nanos <= longest

    return holds


def _is_moment(value: Timestamp) -> bool:
    return _FIRST_SECOND <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < _NANOS_PER_SECOND


def _is_metadata(value: Mapping[str, str]) -> bool:
    if not value:  # the items of an empty map cost a microsecond
        return True
    return len(value) <= _MAXIMUM_METADATA_ENTRIES and all(
        _METADATA_KEY.fullmatch(key) and _METADATA_VALUE.fullmatch(text) for key, text in value.items()
    )


_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME_ZONE = re.compile(r"(?=.{0,64}\Z)(?:[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*)?")
_METADATA_KEY = re.compile(_CHARACTER + "{1,40}")
_METADATA_VALUE = re.compile(_CHARACTER + "{0,200}")
_REPORTED_STATUSES = frozenset(
    {
        DeliveryStatus.DELIVERY_STATUS_SENT,
        DeliveryStatus.DELIVERY_STATUS_DELIVERED,
        DeliveryStatus.DELIVERY_STATUS_FAILED,
    }
)
_UUID = _matches("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", "a UUID in its usual form with hyphens")
_NUMBER = _matches(f"{_CHARACTER}{{1,32}}", "an international number of at most 32 characters")
_ANYTHING = Rule("any", lambda _: True)
_TO_A_PHONE = Rule("SMS or WHATSAPP", frozenset({Channel.CHANNEL_SMS, Channel.CHANNEL_WHATSAPP}).__contains__)
_AREAS = Rule(f"at most {_MAXIMUM_AREAS} countries or prefixes of numbers", _are_areas)
_MOST_SENDS = _whole(0, _MAXIMUM_SENDS, "0 to 1000000")
_BILLING_EMAIL = Rule(f"an e-mail address of at most {_MAXIMUM_EMAIL_LENGTH} characters", _is_email)
_MOMENT = Rule("a valid google.protobuf.Timestamp, or unset", _is_moment)
_MONTH = _matches("(?:[1-9][0-9]{3}-(?:0[1-9]|1[0-2]))?", "a month as YYYY-MM, or empty")
_PURPOSE = _matches("[a-z][a-z0-9_]{0,31}", '1 to 32 lower-case letters, digits and "_", beginning with a letter')
_DATE = Rule("a day as YYYY-MM-DD", _is_day)
_SETTINGS_FIELDS = frozenset(Settings.DESCRIPTOR.fields_by_name)
_AUTOMATIC_FIELDS = frozenset(AutomaticTopUpSettings.DESCRIPTOR.fields_by_name)
_URL: Final = r"https?://[A-Za-z0-9.:\[\]-]+(?:[/?#][!-~]*)?"
_HOST_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"

RULES: Final[Mapping[str, Rule]] = {
    "organization_id": _matches(ORGANIZATION_ID, '1 to 64 characters: letters, digits, and any of "._:@-"'),
    "request_id": _UUID,
    "otp_id": _UUID,
    "top_up_id": _UUID,
    "delivery_id": _UUID,
    # Lists
    "page_size": _whole(0, 500, "0 to 500"),
    "page_token": _text(0, 256),
    "statuses": _some_of(frozenset(TopUpStatus.values()) - {0}, "known states"),
    "otp_statuses": _some_of(frozenset(OtpStatus.values()) - {0}, "known states"),
    "channels": _some_of(frozenset(Channel.values()) - {0}, "known channels"),
    "kinds": _some_of(frozenset(LedgerEntryKind.values()) - {0}, "known kinds"),
    "purposes": Rule(
        f"at most {_MAXIMUM_FILTER_VALUES} valid purposes",
        lambda values: len(values) <= _MAXIMUM_FILTER_VALUES and all(map(_PURPOSE.holds, values)),
    ),
    "reference_id": Rule(
        "a UUID in its usual form with hyphens, or empty", lambda value: not value or _UUID.holds(value)
    ),
    "start_time": _MOMENT,
    "end_time": _MOMENT,
    "time": _MOMENT,
    "with_runway": _ANYTHING,
    "with_conversions": _ANYTHING,
    "start_month": _MONTH,
    "end_month": _MONTH,
    "resume_token": _text(0, 256),
    "cursor": _text(0, 256),
    "sequence": _whole(1, 2**63 - 1, "1 to 9223372036854775807"),
    "from_oldest": _ANYTHING,
    "start_date": _DATE,
    "end_date": _DATE,
    # Credits
    "credits": _ANYTHING,  # server.credits.pricing checks it, with its own errors
    "currency_code": _matches("[A-Z]{3}", "three upper-case letters"),
    "billing_email": _BILLING_EMAIL,
    "billing_name": _text(0, 120),
    "country": _matches("[A-Z]{2}", "two upper-case letters"),
    "line1": _text(0, 200),
    "line2": _text(0, 200),
    "city": _text(0, 100),
    "state": _text(0, 100),
    "postal_code": _text(0, 20),
    "tax_id_type": _matches("[a-z_]{0,30}", 'at most 30 lower-case letters and "_"'),
    "tax_id": _text(0, 50),
    "resolve_credits": _whole(0, _MAXIMUM_CREDITS, "0 to 1000000000"),
    "low_balance_threshold": _whole(0, _MAXIMUM_CREDITS, "0 to 1000000000"),
    "alert_email": Rule(
        f"an e-mail address of at most {_MAXIMUM_EMAIL_LENGTH} characters, or empty",
        lambda value: not value or _is_email(value),
    ),
    "time_zone": Rule("an IANA time zone of at most 64 characters such as Asia/Jakarta, or empty", _is_time_zone),
    "enabled": _ANYTHING,
    "threshold_credits": _whole(1, _MAXIMUM_CREDITS, "1 to 1000000000"),
    "monthly_credit_cap": _whole(1, _MAXIMUM_CREDITS, "1 to 1000000000"),
    "consent_text": _text(0, 2000),
    "return_url": _matches(rf"(?=.{{1,1000}}\Z){_URL}", "an http or https URL of at most 1000 characters"),
    "adjust_credits": Rule("-1000000000 to 1000000000, not 0", lambda value: 0 < abs(value) <= _MAXIMUM_CREDITS),
    "reason": _text(1, 500),
    "payload": Rule(f"at most {_MAXIMUM_PAYLOAD_BYTES} bytes", lambda value: len(value) <= _MAXIMUM_PAYLOAD_BYTES),
    "signature": _text(0, 4096),
    # OTPs; server.otps checks destinations further and raises InvalidDestination
    "email": _matches(
        f"{_CHARACTER}{{1,{_MAXIMUM_EMAIL_LENGTH}}}", f"an e-mail address of at most {_MAXIMUM_EMAIL_LENGTH} characters"
    ),
    "whatsapp": _NUMBER,
    "sms": _NUMBER,
    "purpose": _PURPOSE,
    "locale": _matches(
        r"(?=.{0,35}\Z)(?:[A-Za-z]{2,8}(?:(?:-|_#?)[A-Za-z0-9]{1,8})*)?",
        "a BCP 47 tag of at most 35 characters, also as Java writes it (in_ID), or empty",
    ),
    "code_length": Rule("6 to 8, or 0 for 6", frozenset({0, 6, 7, 8}).__contains__),
    "ttl": Rule("30 s to 10 min, or unset", _lasts(30, 600)),
    "after": Rule("15 s to 5 min, or unset", _lasts(15, 300)),
    "max_attempts": _whole(0, 10, "1 to 10, or 0 for 5"),
    "context": _text(0, 256),
    "web_otp_domain": _matches(
        rf"(?=.{{0,40}}\Z)(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*)?", "a host name of at most 40 characters, or empty"
    ),
    "sms_app_hash": _matches("(?:[A-Za-z0-9+/]{11})?", '11 letters, digits, "+" and "/", or empty'),
    "metadata": Rule(
        f"at most {_MAXIMUM_METADATA_ENTRIES} entries, keys of 1 to 40 and values of at most 200 characters,"
        " without control characters",
        _is_metadata,
    ),
    "validate_only": _ANYTHING,
    "compact": _ANYTHING,
    "code": _matches(rf"(?:{_CHARACTER}|[\t\r\n]){{1,32}}", "1 to 32 characters, of controls only tabs and line ends"),
    "wrong_code_as_result": _ANYTHING,
    "status": Rule("SENT, DELIVERED or FAILED", _REPORTED_STATUSES.__contains__),
    "failure_reason": _matches("[A-Za-z0-9_]{0,64}", 'at most 64 letters, digits and "_"'),
    "mail_token": _matches(MAIL_TOKEN, "39 letters and digits"),
    "suppression_reason": Rule("BOUNCE, COMPLAINT or unspecified", frozenset(SuppressionReason.values()).__contains__),
    "report_time": _MOMENT,
    # Settings; server.otps.effective_settings checks them against the operator's limits
    "brand_name": _text(0, 20),
    "channel": _TO_A_PHONE,
    "country_code": _matches("(?:[A-Z]{2})?", "two upper-case letters, or empty"),
    "sender_id": _matches(
        r"(?=.{1,11}\Z)(?=.*[A-Za-z])[A-Za-z0-9](?:[A-Za-z0-9 ]*[A-Za-z0-9])?|\+[1-9][0-9]{6,14}|[0-9]{1,20}",
        "at most 11 letters, digits and spaces, a number in E.164, or an id of at most 20 digits",
    ),
    "email_sender_name": _text(0, 60),
    "email_reply_to": Rule(
        f"an address of at most {_MAXIMUM_EMAIL_LENGTH} characters, ASCII before the @, or empty", _is_reply_to
    ),
    "allowed_areas": _AREAS,
    "blocked_areas": _AREAS,
    "number_types": Rule(
        "at most 12 known types",
        lambda values: (
            len(values) < len(NumberType.values()) and (frozenset(NumberType.values()) - {0}).issuperset(values)
        ),
    ),
    "cooldown": Rule("0 s to 1 h, or unset", _lasts(0, 3600)),
    "sends_per_destination_per_hour": _MOST_SENDS,
    "sends_per_destination_per_day": _MOST_SENDS,
    "fallback_channel": _TO_A_PHONE,
    "refund_policy": Rule("a known policy", frozenset(RefundPolicy.values()).__contains__),
    "daily_credit_cap": _whole(0, _MAXIMUM_CREDITS, "0 to 1000000000"),
    "contact_email": _BILLING_EMAIL,
    "update_mask": Rule(
        "at most 18 names of fields of the settings that are updated, or *",
        lambda value: (
            list(value.paths) == ["*"]
            or (
                len(value.paths) <= len(_SETTINGS_FIELDS)
                and (_SETTINGS_FIELDS.issuperset(value.paths) or _AUTOMATIC_FIELDS.issuperset(value.paths))
            )
        ),
    ),
    "expected_version": _whole(0, _MAXIMUM_CREDITS, "0 to 1000000000"),
}
"""Rules by field name, for every field of a request except Pulsa's own messages: their fields have rules."""

MOST_REPEATED: Final[Mapping[str, int]] = {
    "fallbacks": 3,
    "requests": 1000,
    "senders": 50,
    "default_fallbacks": 3,
    "billing_contacts": 10,
}
"""The maximum number of elements of a repeated field of Pulsa's own messages, by field name."""

REQUIRED: Final = frozenset(
    f"pulsa.otp.v1.{name}.destination"
    for name in ("SendOtpRequest", "Fallback", "EraseDestinationRequest", "LiftSuppressionRequest")
)
"""Full names of fields of Pulsa's own messages that must be set."""


def _updates(fields: frozenset[str]) -> tuple[str, Rule]:
    """The rule that a mask names fields of the settings that are updated."""
    return "update_mask", Rule(
        "names of fields of the settings that are updated, or *",
        lambda request: list(request.update_mask.paths) == ["*"] or fields.issuperset(request.update_mask.paths),
    )


def _tax_id_holds(message: Any) -> bool:
    return bool(message.tax_id) == bool(message.tax_id_type)


def _usage_days_hold(request: Any) -> bool:
    if not (_is_day(request.start_date) and _is_day(request.end_date)):
        return True  # reported by the rules of the two fields
    days = (date.fromisoformat(request.end_date) - date.fromisoformat(request.start_date)).days
    return 0 <= days <= _MAXIMUM_USAGE_DAYS


WHOLE_REQUEST: Final[Mapping[str, tuple[str, Rule]]] = {
    "SendOtpRequest": (
        "sms_app_hash",
        Rule("empty when web_otp_domain is set", lambda request: not (request.sms_app_hash and request.web_otp_domain)),
    ),
    "CreateTopUpRequest": ("tax_id", Rule("set with tax_id_type, or empty", _tax_id_holds)),
    "AutomaticTopUpSettings": ("tax_id", Rule("set with tax_id_type, or empty", _tax_id_holds)),
    "UpdateSettingsRequest": _updates(_SETTINGS_FIELDS),
    "UpdateAutomaticTopUpRequest": _updates(_AUTOMATIC_FIELDS),
    "GetUsageRequest": (
        "end_date",
        Rule(f"from start_date to {_MAXIMUM_USAGE_DAYS} days after it", _usage_days_hold),
    ),
}
"""Rules that involve several fields: by message name, with the field to report."""
