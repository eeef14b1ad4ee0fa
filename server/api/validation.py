"""The rules of request fields, and the validation compiled from them at start.

A valid request costs a few microseconds: a fast check visits only the fields that are set, as most requests leave most
fields unset. When it fails, a slower check collects the violations of every field.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from operator import attrgetter
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from email_validator import EmailNotValidError, validate_email
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pulsa.credit.v1.channel_pb2 import Channel
from pulsa.credit.v1.ledger_entry_pb2 import LedgerEntryKind
from pulsa.credit.v1.top_up_pb2 import TopUpStatus
from pulsa.otp.v1.delivery_pb2 import DeliveryStatus
from pulsa.otp.v1.otp_pb2 import OtpStatus
from pulsa.otp.v1.suppression_pb2 import SuppressionReason

from server.errors import FieldViolation, InvalidFields
from server.ids import MAIL_TOKEN, ORGANIZATION_ID

# Control characters would corrupt logs and messages, PostgreSQL rejects NUL, and surrogates are not characters.
_CHARACTER: Final = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_MAXIMUM_EMAIL_LENGTH: Final = 254
_MAXIMUM_CREDITS: Final = 1_000_000_000
_MAXIMUM_METADATA_ENTRIES: Final = 10
_MAXIMUM_FILTER_VALUES: Final = 10
_MAXIMUM_USAGE_DAYS: Final = 92
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
_MOMENT = Rule("a valid google.protobuf.Timestamp, or unset", _is_moment)
_MONTH = _matches("(?:[1-9][0-9]{3}-(?:0[1-9]|1[0-2]))?", "a month as YYYY-MM, or empty")
_PURPOSE = _matches("[a-z][a-z0-9_]{0,31}", '1 to 32 lower-case letters, digits and "_", beginning with a letter')
_DATE = Rule("a day as YYYY-MM-DD", _is_day)
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
    "start_date": _DATE,
    "end_date": _DATE,
    # Credits
    "credits": _ANYTHING,  # server.credits.pricing checks it, with its own errors
    "currency_code": _matches("[A-Z]{3}", "three upper-case letters"),
    "billing_email": Rule(f"an e-mail address of at most {_MAXIMUM_EMAIL_LENGTH} characters", _is_email),
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
}
"""Rules by field name, for every field of a request except Pulsa's own messages: their fields have rules."""

MOST_REPEATED: Final[Mapping[str, int]] = {"fallbacks": 3, "requests": 1000}
"""The maximum number of elements of a repeated field of Pulsa's own messages, by field name."""

REQUIRED: Final = frozenset(
    f"pulsa.otp.v1.{name}.destination"
    for name in ("SendOtpRequest", "Fallback", "EraseDestinationRequest", "LiftSuppressionRequest")
)
"""Full names of fields of Pulsa's own messages that must be set."""


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
    "CreateTopUpRequest": (
        "tax_id",
        Rule("set with tax_id_type, or empty", lambda request: bool(request.tax_id) == bool(request.tax_id_type)),
    ),
    "GetUsageRequest": (
        "end_date",
        Rule(f"from start_date to {_MAXIMUM_USAGE_DAYS} days after it", _usage_days_hold),
    ),
}
"""Rules that involve several fields: by request name, with the field to report."""


Validate = Callable[[Message], None]
_Holds = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class _Check:
    """A check of one field, of a oneof, or of the whole message."""

    value: Callable[[Any], Any]
    holds: _Holds
    violations: Callable[[Any], Iterator[FieldViolation]]
    """The violations of an invalid value; their paths start at the message."""


def compile_validation(request: Descriptor) -> Validate:
    """Return a function that raises InvalidFields with all violations. Raises LookupError when a field has no rule."""
    checks, holds = _checks(request), _all_hold(request)

    def validate(message: Message) -> None:
        if not holds(message):
            raise InvalidFields(violations=tuple(_violations(checks, message)))

    return validate


def compile_check(request: Descriptor, fields: Collection[str]) -> Callable[[Message], bool]:
    """Return a function that is true when these fields of a request keep their rules.

    A field is a value whose default is valid, or one that must be set, or a message that is a choice of one field.
    """
    values: list[tuple[Callable[[Any], Any], _Holds, bool]] = []
    choices: list[tuple[Callable[[Any], Any], str, Mapping[str, _Holds]]] = []
    for name in fields:
        field, value = request.fields_by_name[name], attrgetter(name)
        if field.message_type is not None and not field.is_repeated:
            (oneof,) = field.message_type.oneofs
            choices.append((value, oneof.name, {each.name: RULES[each.name].holds for each in oneof.fields}))
        else:
            values.append((value, _field_holds(field), _must_be_set(field)))

    def holds(message: Message) -> bool:
        for value, is_valid, must_be_set in values:
            given = value(message)
            if (given or must_be_set) and not is_valid(given):
                return False
        for value, oneof_name, rules in choices:
            choice = value(message)
            chosen = choice.WhichOneof(oneof_name)
            if chosen is None or not rules[chosen](getattr(choice, chosen)):
                return False
        return True

    return holds


def _all_hold(message: Descriptor) -> Callable[[Message], bool]:
    """Return a function that is true when a message keeps all rules."""
    rules: dict[int, tuple[_Holds, bool]] = {}
    must_be_set = sum(map(_is_choice, message.oneofs))
    for field in message.fields:
        holds, of_choice = _field_holds(field), _choice_of(field) is not None
        needed = not of_choice and _must_be_set(field)
        must_be_set += needed
        rules[field.number] = holds, needed or of_choice
    whole = WHOLE_REQUEST[message.name][1].holds if message.name in WHOLE_REQUEST else None

    def hold(message: Message) -> bool:
        missing = must_be_set
        for field, value in message.ListFields():
            holds, needed = rules[field.number]
            if not holds(value):
                return False
            missing -= needed
        return not missing and (whole is None or bool(whole(message)))

    return hold


def _field_holds(field: FieldDescriptor) -> _Holds:
    """Return the check of a value of the field, for when the field is set."""
    if field.name in RULES:
        return RULES[field.name].holds
    if field.message_type is None:
        raise LookupError(f"RULES has no rule for {field.full_name}")
    holds = _all_hold(field.message_type)
    if not field.is_repeated:
        return holds
    most = MOST_REPEATED[field.name]
    return lambda messages: len(messages) <= most and all(map(holds, messages))


def _must_be_set(field: FieldDescriptor) -> bool:
    """Whether a message without the field is invalid."""
    if field.has_presence or field.is_repeated:
        return field.full_name in REQUIRED
    return not RULES[field.name].holds(field.default_value)


def _violations(checks: tuple[_Check, ...], message: Message) -> Iterator[FieldViolation]:
    for check in checks:
        value = check.value(message)
        if not check.holds(value):
            yield from check.violations(value)


def _checks(message: Descriptor) -> tuple[_Check, ...]:
    single = [field for field in message.fields if not _choice_of(field)]
    checks = [_field_check(field) for field in single]
    checks += [_choice_check(oneof) for oneof in message.oneofs if _is_choice(oneof)]
    if message.name in WHOLE_REQUEST:
        name, rule = WHOLE_REQUEST[message.name]
        checks.append(_Check(lambda whole: whole, rule.holds, _always(name, rule.description)))
    return tuple(checks)


def _choice_of(field: FieldDescriptor) -> OneofDescriptor | None:
    """Return the oneof that the field belongs to, if any."""
    oneof = field.containing_oneof
    return oneof if oneof is not None and _is_choice(oneof) else None


def _is_choice(oneof: OneofDescriptor) -> bool:
    """False for an `optional` field, which protobuf represents as a oneof with a single field."""
    return not oneof.name.startswith("_")


def _field_check(field: FieldDescriptor) -> _Check:
    name, holds = field.name, _field_holds(field)
    value: Callable[[Any], Any] = attrgetter(name)
    if field.has_presence and field.full_name not in REQUIRED:
        value, holds = _set_or_none(name), _holds_or_none(holds)
    if name in RULES or field.message_type is None:
        return _Check(value, holds, _always(name, RULES[name].description))
    checks = _checks(field.message_type)
    return _Check(value, holds, _nested_in_each(name, checks) if field.is_repeated else _nested(name, checks))


def _choice_check(oneof: OneofDescriptor) -> _Check:
    rules = {field.name: RULES[field.name] for field in oneof.fields}
    description = f"exactly one of {', '.join(rules)}"

    def holds(message: Message) -> object:
        chosen = message.WhichOneof(oneof.name)
        return chosen is not None and rules[chosen].holds(getattr(message, chosen))

    def violations(message: Message) -> Iterator[FieldViolation]:
        chosen = message.WhichOneof(oneof.name)
        yield FieldViolation(chosen, rules[chosen].description) if chosen else FieldViolation("", description)

    return _Check(lambda message: message, holds, violations)


def _nested_in_each(name: str, checks: tuple[_Check, ...]) -> Callable[[Any], Iterator[FieldViolation]]:
    most = MOST_REPEATED[name]

    def violations(messages: Any) -> Iterator[FieldViolation]:
        if len(messages) > most:
            yield FieldViolation(name, f"at most {most}")
            return
        for index, message in enumerate(messages):
            yield from _nested(f"{name}[{index}]", checks)(message)

    return violations


def _nested(path: str, checks: tuple[_Check, ...]) -> Callable[[Any], Iterator[FieldViolation]]:
    def violations(message: Message) -> Iterator[FieldViolation]:
        for found in _violations(checks, message):
            yield FieldViolation(f"{path}.{found.field}" if found.field else path, found.description)

    return violations


def _always(name: str, description: str) -> Callable[[Any], Iterator[FieldViolation]]:
    violation = FieldViolation(name, description)
    return lambda _: iter((violation,))


def _set_or_none(name: str) -> Callable[[Any], Any]:
    return lambda message: getattr(message, name) if message.HasField(name) else None


def _holds_or_none(holds: _Holds) -> _Holds:
    return lambda value: value is None or holds(value)
