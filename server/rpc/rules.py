"""What every request field must look like: one table by field name, as one word means one thing everywhere.

Shape only. Whether an address exists or an amount is sold is decided in the rooms. A test keeps this table, the
protos' fields and their comments in step.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from email_validator import EmailNotValidError, validate_email
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pulsa.credit.v1.top_up_pb2 import TopUpStatus
from pulsa.otp.v1.delivery_pb2 import DeliveryStatus

# Control characters would break logs and messages, and PostgreSQL refuses NUL; surrogates are not characters.
_CHARACTER: Final = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_LONGEST_EMAIL: Final = 254
_MOST_CREDITS: Final = 1_000_000_000
_MOST_METADATA: Final = 10
_MOST_STATUSES: Final = 10
_LONGEST_USAGE_DAYS: Final = 92
_LARGEST_PAYLOAD_BYTES: Final = 262_144
_NANOS_PER_SECOND: Final = 1_000_000_000
_FIRST_SECOND: Final = -62_135_596_800
_LAST_SECOND: Final = 253_402_300_799
"""0001-01-01 and the end of 9999, between which a google.protobuf.Timestamp lies."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field's value must be: in words, and as a check of the value alone."""

    description: str
    holds: Callable[[Any], object]
    """Truthy for a good value. Called for every request: cheap."""


def _matches(pattern: str, description: str) -> Rule:
    return Rule(description, re.compile(pattern).fullmatch)


def _text(shortest: int, longest: int) -> Rule:
    length = f"{shortest} to {longest} characters" if shortest else f"at most {longest} characters"
    return _matches(f"{_CHARACTER}{{{shortest},{longest}}}", f"{length}, without control characters")


def _whole(smallest: int, largest: int, description: str) -> Rule:
    return Rule(description, lambda value: smallest <= value <= largest)


def _is_email(value: str) -> bool:
    if len(value) > _LONGEST_EMAIL:  # before anybody reads it: normalizing a megabyte of accents takes minutes
        return False
    try:
        validate_email(value, check_deliverability=False)
    except EmailNotValidError:
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


def _is_ttl(value: Duration) -> bool:
    if not 0 <= value.nanos < _NANOS_PER_SECOND:
        return False
    return 30 * _NANOS_PER_SECOND <= value.seconds * _NANOS_PER_SECOND + value.nanos <= 600 * _NANOS_PER_SECOND


def _is_moment(value: Timestamp) -> bool:
    return _FIRST_SECOND <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < _NANOS_PER_SECOND


def _is_metadata(value: Mapping[str, str]) -> bool:
    if not value:  # asking an empty map for its items costs a microsecond
        return True
    return len(value) <= _MOST_METADATA and all(
        _METADATA_KEY.fullmatch(key) and _METADATA_VALUE.fullmatch(text) for key, text in value.items()
    )


_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_METADATA_KEY = re.compile(_CHARACTER + "{1,40}")
_METADATA_VALUE = re.compile(_CHARACTER + "{0,200}")
_TOP_UP_STATUSES = frozenset(TopUpStatus.values()) - {TopUpStatus.TOP_UP_STATUS_UNSPECIFIED}
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
_DATE = Rule("a day as YYYY-MM-DD", _is_day)
_HOST_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"

RULES: Final[Mapping[str, Rule]] = {
    "organization_id": _matches("[A-Za-z0-9._:@-]{1,64}", '1 to 64 characters: letters, digits, and any of "._:@-"'),
    "request_id": _UUID,
    "otp_id": _UUID,
    "top_up_id": _UUID,
    "delivery_id": _UUID,
    # Lists
    "page_size": _whole(0, 500, "0 to 500"),
    "page_token": _text(0, 256),
    "statuses": Rule(
        f"at most {_MOST_STATUSES} known states",
        lambda values: len(values) <= _MOST_STATUSES and _TOP_UP_STATUSES.issuperset(values),
    ),
    "start_date": _DATE,
    "end_date": _DATE,
    # Credits
    "credits": _ANYTHING,  # the pricing decides, with errors of its own
    "currency_code": _matches("[A-Z]{3}", "three upper-case letters"),
    "billing_email": Rule(f"an e-mail address of at most {_LONGEST_EMAIL} characters", _is_email),
    "billing_name": _text(0, 120),
    "low_balance_threshold": _whole(0, _MOST_CREDITS, "0 to 1000000000"),
    "alert_email": Rule(
        f"an e-mail address of at most {_LONGEST_EMAIL} characters, or empty",
        lambda value: not value or _is_email(value),
    ),
    "adjust_credits": Rule("-1000000000 to 1000000000, not 0", lambda value: 0 < abs(value) <= _MOST_CREDITS),
    "reason": _text(1, 500),
    "payload": Rule(f"at most {_LARGEST_PAYLOAD_BYTES} bytes", lambda value: len(value) <= _LARGEST_PAYLOAD_BYTES),
    "signature": _text(0, 4096),
    # OTPs; whether a destination can exist is the rooms' INVALID_DESTINATION
    "email": _matches(
        f"{_CHARACTER}{{1,{_LONGEST_EMAIL}}}", f"an e-mail address of at most {_LONGEST_EMAIL} characters"
    ),
    "whatsapp": _NUMBER,
    "sms": _NUMBER,
    "purpose": _matches("[a-z][a-z0-9_]{0,31}", '1 to 32 lower-case letters, digits and "_", beginning with a letter'),
    "locale": _matches(
        r"(?=.{0,35}\Z)(?:[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*)?", "a BCP 47 tag of at most 35 characters, or empty"
    ),
    "code_length": Rule("6 to 8, or 0 for 6", frozenset({0, 6, 7, 8}).__contains__),
    "ttl": Rule("30 s to 10 min, or unset", _is_ttl),
    "max_attempts": _whole(0, 10, "1 to 10, or 0 for 5"),
    "context": _text(0, 256),
    "web_otp_domain": _matches(
        rf"(?=.{{0,40}}\Z)(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*)?", "a host name of at most 40 characters, or empty"
    ),
    "metadata": Rule(
        f"at most {_MOST_METADATA} entries, keys of 1 to 40 and values of at most 200 characters,"
        " without control characters",
        _is_metadata,
    ),
    "validate_only": _ANYTHING,
    "code": _text(1, 16),
    "status": Rule("SENT, DELIVERED or FAILED", _REPORTED_STATUSES.__contains__),
    "failure_reason": _matches("[A-Za-z0-9_]{0,64}", 'at most 64 letters, digits and "_"'),
    "report_time": Rule("a valid google.protobuf.Timestamp, or unset", _is_moment),
}
"""By field name, for every field of a request but messages of our own: those are checked field by field."""

MOST_REPEATED: Final[Mapping[str, int]] = {"fallbacks": 3}
"""How many messages of our own a repeated field may hold."""

REQUIRED: Final = frozenset({"pulsa.otp.v1.SendOtpRequest.destination"})
"""Messages of our own that may not be left out."""


def _usage_days_hold(request: Any) -> bool:
    if not (_is_day(request.start_date) and _is_day(request.end_date)):
        return True  # said already
    days = (date.fromisoformat(request.end_date) - date.fromisoformat(request.start_date)).days
    return 0 <= days <= _LONGEST_USAGE_DAYS


WHOLE_REQUEST: Final[Mapping[str, tuple[str, Rule]]] = {
    "GetUsageRequest": (
        "end_date",
        Rule(f"from start_date to {_LONGEST_USAGE_DAYS} days after it", _usage_days_hold),
    ),
}
"""Rules between fields: by request, with the field to name."""
