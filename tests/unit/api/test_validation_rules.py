"""Each validation rule against an independent statement of the same comment, on generated requests."""

import string
import unicodedata
import zoneinfo
from collections.abc import Callable
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpSettings
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.settings_pb2 import Settings

from server.api.validation import compile_validation
from server.errors import InvalidFields
from tests.callers import RPCS
from tests.valid_requests import valid_fields

REQUESTS: list[Descriptor] = [method.input_type for method in RPCS.values()]
ALPHANUMERIC = set(string.ascii_letters + string.digits)


def text(value: str, shortest: int, longest: int) -> bool:
    return shortest <= len(value) <= longest and not any(unicodedata.category(letter) == "Cc" for letter in value)


def only(value: str, letters: set[str], shortest: int, longest: int) -> bool:
    return shortest <= len(value) <= longest and set(value) <= letters


def uuid(value: str) -> bool:
    try:
        return str(UUID(value)) == value.lower()
    except ValueError:
        return False


def day(value: str) -> bool:
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def host(value: str) -> bool:
    labels = value.split(".")
    valid = all(label and set(label) <= ALPHANUMERIC | {"-"} and "-" not in label[0] + label[-1] for label in labels)
    return not value or (len(value) <= 40 and valid)


def language(value: str) -> bool:
    first, *rest = value.replace("_#", "-").replace("_", "-").split("-")
    valid = only(first, set(string.ascii_letters), 2, 8) and all(only(part, ALPHANUMERIC, 1, 8) for part in rest)
    return not value or (len(value) <= 35 and valid)


def purpose(value: str) -> bool:
    lower = set(string.ascii_lowercase)
    return only(value, lower | set(string.digits) | {"_"}, 1, 32) and value[0] in lower


def fallback(value: Any) -> bool:
    return destination(value.destination) and (not value.HasField("after") or lasts(value.after, 15, 300))


def lasts(value: Duration, shortest: int, longest: int) -> bool:
    return value.nanos in range(10**9) and shortest <= value.seconds + value.nanos / 10**9 <= longest


def destination(value: Message) -> bool:
    name = value.WhichOneof("channel")
    return name is not None and text(getattr(value, name), 1, 254 if name == "email" else 32)


def moment(value: Any) -> bool:
    return -62_135_596_800 <= value.seconds < 253_402_300_800 and value.nanos in range(10**9)


def month(value: str) -> bool:
    year, _, number = value.partition("-")
    return not value or (
        only(year, set(string.digits), 4, 4) and int(year) >= 1000 and number in {f"{each:02}" for each in range(1, 13)}
    )


def settings_hold(value: Settings) -> bool:
    return (
        text(value.brand_name, 0, 20)
        and text(value.email_sender_name, 0, 60)
        and value.daily_credit_cap in range(1_000_000_001)
        and value.sends_per_destination_per_hour in range(1_000_001)
        and value.refund_policy in range(3)
        and (not value.HasField("cooldown") or lasts(value.cooldown, 0, 3600))
        and len(value.number_types) <= 12
        and all(each in range(1, 13) for each in value.number_types)
        and len(value.blocked_areas) <= 300
        and all(
            area == "001" or area[:1] == "+" or only(area, set(string.ascii_uppercase), 2, 2)
            for area in value.blocked_areas
        )
        and len(value.default_fallbacks) <= 3
        and all(
            each.fallback_channel in (2, 3) and (not each.HasField("after") or lasts(each.after, 15, 300))
            for each in value.default_fallbacks
        )
        and len(value.senders) <= 50
        and all(sender_holds(each) for each in value.senders)
    )


def sender_holds(value: Any) -> bool:
    name = value.sender_id
    is_name = only(name, ALPHANUMERIC | {" "}, 1, 11) and name == name.strip() and any(map(str.isalpha, name))
    is_number = name[:1] == "+" and only(name[1:], set(string.digits), 7, 15) and name[1] != "0"
    return (
        value.channel in (2, 3)
        and only(value.country_code, set(string.ascii_uppercase), 0, 2)
        and len(value.country_code) != 1
        and (is_name or is_number or only(name, set(string.digits), 1, 20))
    )


def automatic_settings_hold(value: AutomaticTopUpSettings) -> bool:
    counts = range(1, 10**9 + 1)
    return (
        (not value.HasField("threshold_credits") or value.threshold_credits in counts)
        and (not value.HasField("monthly_credit_cap") or value.monthly_credit_cap in counts)
        and (not value.HasField("currency_code") or only(value.currency_code, set(string.ascii_uppercase), 3, 3))
    )


def mask_holds(value: Any, message: type[Message]) -> bool:
    known = message.DESCRIPTOR.fields_by_name
    return list(value.paths) == ["*"] or (len(value.paths) <= 18 and all(path in known for path in value.paths))


def url(value: str) -> bool:
    scheme, _, rest = value.partition("://")
    host_name = rest.replace("?", "/").replace("#", "/").partition("/")[0]
    visible = all("!" <= letter <= "~" for letter in rest)
    return (
        scheme in {"http", "https"}
        and len(value) <= 1000
        and only(host_name, ALPHANUMERIC | set(".:-[]"), 1, 1000)
        and visible
    )


ZONES = zoneinfo.available_timezones()
STATEMENTS: dict[str, Callable[[Any], bool]] = {
    "organization_id": lambda value: only(value, ALPHANUMERIC | set("._:@-"), 1, 64),
    "request_id": uuid,
    "otp_id": uuid,
    "top_up_id": uuid,
    "delivery_id": uuid,
    "page_size": lambda value: value in range(501),
    "page_token": lambda value: text(value, 0, 256),
    "statuses": lambda values: len(values) <= 10 and all(value in range(1, 11) for value in values),
    "otp_statuses": lambda values: len(values) <= 10 and all(value in range(1, 6) for value in values),
    "channels": lambda values: len(values) <= 10 and all(value in range(1, 4) for value in values),
    "kinds": lambda values: len(values) <= 10 and all(value in range(1, 5) for value in values),
    "purposes": lambda values: len(values) <= 10 and all(map(purpose, values)),
    "reference_id": lambda value: not value or uuid(value),
    "start_time": moment,
    "end_time": moment,
    "time": moment,
    "start_month": month,
    "end_month": month,
    "resume_token": lambda value: text(value, 0, 256),
    "with_runway": lambda _: True,
    "with_conversions": lambda _: True,
    "cursor": lambda value: text(value, 0, 256),
    "sequence": lambda value: value > 0,
    "from_oldest": lambda _: True,
    "start_date": day,
    "currency_code": lambda value: only(value, set(string.ascii_uppercase), 3, 3),
    "billing_name": lambda value: text(value, 0, 120),
    "tax_id_type": lambda value: only(value, set(string.ascii_lowercase) | {"_"}, 0, 30),
    "resolve_credits": lambda value: value in range(1_000_000_001),
    "low_balance_threshold": lambda value: value in range(1_000_000_001),
    "time_zone": lambda value: not value or value in ZONES,
    "adjust_credits": lambda value: value != 0 and value in range(-1_000_000_000, 1_000_000_001),
    "reason": lambda value: text(value, 1, 500),
    "payload": lambda value: len(value) <= 262_144,
    "signature": lambda value: text(value, 0, 4096),
    "destination": destination,
    "fallbacks": lambda values: len(values) <= 3 and all(fallback(value) for value in values),
    "purpose": purpose,
    "locale": language,
    "code_length": lambda value: value in (0, 6, 7, 8),
    "ttl": lambda value: lasts(value, 30, 600),
    "max_attempts": lambda value: value in range(11),
    "context": lambda value: text(value, 0, 256),
    "web_otp_domain": host,
    "sms_app_hash": lambda value: not value or only(value, ALPHANUMERIC | set("+/"), 11, 11),
    "metadata": lambda value: (
        len(value) <= 10 and all(text(key, 1, 40) and text(note, 0, 200) for key, note in value.items())
    ),
    "code": lambda value: len(value) >= 1 and text(value.translate(dict.fromkeys(b"\t\r\n", "x")), 1, 32),
    "status": lambda value: value in (2, 3, 4),
    "failure_reason": lambda value: only(value, ALPHANUMERIC | {"_"}, 0, 64),
    "report_time": moment,
    "mail_token": lambda value: only(value, set(string.ascii_lowercase) | set("234567"), 39, 39),
    "suppression_reason": lambda value: value in range(3),
    "expected_version": lambda value: value in range(1_000_000_001),
    "update_mask": lambda value: mask_holds(value, Settings),
    "settings": settings_hold,
    "automatic_settings": automatic_settings_hold,
    "consent_text": lambda value: text(value, 0, 2000),
    "return_url": url,
    "credits": lambda _: True,
    "validate_only": lambda _: True,
    "compact": lambda _: True,
    "wrong_code_as_result": lambda _: True,
}


def uuid_spellings(good: str) -> list[str]:
    return [good, good.upper(), good[:-1], good + "0", good.replace("-", ""), good[:-1] + "g", f"{{{good}}}"]


LENGTHS = [1, 3, 8, 16, 17, 32, 33, 35, 40, 41, 64, 65, 120, 121, 200, 254, 255, 256, 257, 500, 501, 4096, 4097]
NUMBERS = [0, 1, 5, 6, 8, 9, 10, 11, 29, 30, 31, 499, 500, 501, 599, 600, 601, 10**9 - 1, 10**9, 10**9 + 1]
STRINGS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.text(st.sampled_from("aZ09_-.:@+ é\x00\x7f\x85\n"), max_size=40)
    | st.builds(lambda letter, length: letter * length, st.sampled_from("aA0é\n."), st.sampled_from(LENGTHS))
    | st.sampled_from(
        [
            "IDR",
            "Asia/Jakarta",
            "Asia/Nowhere",
            "../etc/passwd",
            "/etc/passwd",
            "id-ID",
            "zh-Hant",
            "2026-02-28",
            "2026-02-29",
            "2026-12",
            "2026-13",
            "0999-01",
            "20260228",
            "2026-W01-1",
            "0000-01-01",
        ]
    )
    | st.uuids().flatmap(lambda value: st.sampled_from(uuid_spellings(str(value))))
)
DESTINATIONS = st.one_of(
    st.just({}), *(st.fixed_dictionaries({field.name: STRINGS}) for field in Destination.DESCRIPTOR.fields)
)
SPANS = st.fixed_dictionaries(
    {
        "seconds": st.sampled_from([*NUMBERS, -1, -62_135_596_801, -62_135_596_800, 253_402_300_799, 253_402_300_800]),
        "nanos": st.sampled_from([0, 1, 10**9 - 1, 10**9, -1]),
    }
)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "destination": DESTINATIONS,
    "fallbacks": st.lists(
        st.fixed_dictionaries({}, optional={"destination": DESTINATIONS, "after": SPANS}), max_size=4
    ),
    "ttl": SPANS,
    "report_time": SPANS,
    "start_time": SPANS,
    "end_time": SPANS,
    "time": SPANS,
    **{
        name: st.lists(st.sampled_from([0, 1, 4, 5, 99]), max_size=11) for name in ("otp_statuses", "channels", "kinds")
    },
    "purposes": st.lists(STRINGS | st.just("login"), max_size=11),
    "metadata": st.dictionaries(STRINGS, STRINGS, max_size=12),
    "statuses": st.lists(st.sampled_from([0, 1, 5, 9, 10, 99]), max_size=11),
    "status": st.sampled_from([0, 1, 2, 3, 4, 5, 99]),
    "suppression_reason": st.sampled_from([0, 1, 2, 3, 99]),
    "mail_token": st.sampled_from(["", "a" * 38, "a" * 39, "a" * 40, "A" * 39, "1" * 39, "7" * 39]),
    "payload": st.sampled_from([b"", b"\x00", b"x" * 262_144, b"x" * 262_145]),
    "validate_only": st.booleans(),
    "wrong_code_as_result": st.booleans(),
    "expected_version": st.sampled_from([0, 1, -1, 10**9, 10**9 + 1]),
    "update_mask": st.lists(
        st.sampled_from(["*", "brand_name", "ttl", "credits", "", "nothing", "senders.channel"]), max_size=19
    ).map(lambda paths: {"paths": paths}),
    "return_url": STRINGS
    | st.sampled_from(
        ["https://a.example", "http://[::1]:80/x?y#z", "ftp://a", "https://", "https://a b", "https://a/é"]
    )
    | st.builds(lambda length: f"https://a/{'x' * length}", st.sampled_from([989, 990, 991])),
    "consent_text": STRINGS | st.builds(lambda length: "x" * length, st.sampled_from([2000, 2001])),
    "automatic_settings": st.fixed_dictionaries(
        {},
        optional={
            "enabled": st.booleans(),
            "threshold_credits": st.sampled_from(NUMBERS),
            "monthly_credit_cap": st.sampled_from(NUMBERS),
            "currency_code": STRINGS,
        },
    ),
    "settings": st.fixed_dictionaries(
        {},
        optional={
            "brand_name": STRINGS,
            "email_sender_name": STRINGS,
            "daily_credit_cap": st.sampled_from([-1, 0, 10**9, 10**9 + 1]),
            "sends_per_destination_per_hour": st.sampled_from([-1, 0, 10**6, 10**6 + 1]),
            "refund_policy": st.sampled_from([0, 2, 3]),
            "cooldown": SPANS,
            "number_types": st.lists(st.sampled_from([0, 1, 12, 13]), max_size=3),
            "blocked_areas": st.lists(st.sampled_from(["ID", "001", "+62812", "id", "IDN", ""]), max_size=3)
            | st.just(["ID"] * 301),
            "default_fallbacks": st.lists(
                st.fixed_dictionaries({"fallback_channel": st.integers(0, 4)}, optional={"after": SPANS}), max_size=4
            ),
            "senders": st.lists(
                st.fixed_dictionaries(
                    {
                        "channel": st.integers(0, 4),
                        "country_code": st.sampled_from(["", "ID", "id", "I"]),
                        "sender_id": STRINGS | st.sampled_from(["Acme", "A cme 12345", "Acme ", "+12025550123", "123"]),
                    }
                ),
                max_size=2,
            )
            | st.just([{"channel": 3, "sender_id": "Acme"}] * 51),
        },
    ),
}


def anything(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.name in BY_NAME:
        return BY_NAME[field.name]
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return STRINGS
    return st.sampled_from(NUMBERS).flatmap(lambda number: st.sampled_from([number, -number]))


@st.composite
def requests(draw: st.DrawFn, request: Descriptor) -> Message:
    """Some fields valid, some with any value, some left out."""
    good, fields = valid_fields(), {}
    for field in request.fields:
        choice = draw(st.sampled_from(["good", "anything", "absent"]))
        if field.name not in STATEMENTS or choice == "good":
            fields[field.name] = good[field.name]
        elif choice == "anything":
            fields[field.name] = draw(anything(field))
    return GetMessageClass(request)(**fields)


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda request: request.name)
def test_a_field_is_refused_exactly_when_it_breaks_its_stated_rule(request_type: Descriptor) -> None:
    validate = compile_validation(request_type)

    @given(requests(request_type))
    def holds(request: Message) -> None:
        try:
            validate(request)
            refused: set[str] = set()
        except InvalidFields as error:
            refused = {violation.field.partition(".")[0].partition("[")[0] for violation in error.violations}
        assert refused - {"end_date", "tax_id"} == broken(request)  # rules between fields

    holds()


def broken(request: Message) -> set[str]:
    """The fields that break their rules, by the statements above."""
    names = {field.name for field in request.DESCRIPTOR.fields if field.name in STATEMENTS}
    may_be_absent = {
        "ttl",
        "report_time",
        "start_time",
        "end_time",
        "time",
        "expected_version",
        "update_mask",
        "settings",
        "automatic_settings",
    }
    may_be_absent |= {"destination"} if request.DESCRIPTOR.name in {"ResendOtpRequest", "ListOtpsRequest"} else set()
    absent = {name for name in names & may_be_absent if not request.HasField(name)}
    statements = STATEMENTS | (
        {"update_mask": lambda value: mask_holds(value, AutomaticTopUpSettings)}
        if request.DESCRIPTOR.name == "UpdateAutomaticTopUpRequest"
        else {}
    )
    alone = {name for name in names - absent if not statements[name](getattr(request, name))}
    both = {"sms_app_hash", "web_otp_domain"} & {field.name for field, _ in request.ListFields()}
    return alone | {"sms_app_hash"} if len(both) == 2 else alone
