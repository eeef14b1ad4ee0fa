"""Parses e-mail addresses and phone numbers into one normalized spelling, and a masked one to show.

Two spellings of one destination must not have limits of their own. A plain phone number is matched with patterns from
the data of the library phonenumbers, and a plain address with a pattern of this module. Any other spelling is parsed by
the libraries phonenumbers and email_validator, which are slower.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple
from unicodedata import category, decimal

import phonenumbers
from email_validator import EmailNotValidError, validate_email
from phonenumbers import (
    COUNTRY_CODE_TO_REGION_CODE,
    SUPPORTED_REGIONS,
    NumberParseException,
    PhoneMetadata,
    PhoneNumber,
    PhoneNumberFormat,
    PhoneNumberType,
)
from phonenumbers.phonemetadata import PhoneNumberDesc
from prometheus_client import Gauge

from server.providers.provider import Channel

NO_COUNTRY: Final = "001"
"""The country of numbers that belong to none, such as +870 and +979."""
LIBRARY_VERSION, LIBRARY_DATE = "9.0.42", date(2026, 10, 27)
"""The pinned version of phonenumberslite, whose data are the numbering plans, and the day of its release."""
LIBRARY_TIME: Final = Gauge(
    "pulsa_number_ranges_timestamp_seconds",
    "When the data on phone numbers were current, the release of the installed phonenumberslite: Unix time.",
    multiprocess_mode="livemin",
)

_CALLING_CODE_DIGITS = 3
_CALLING_CODES: Final = frozenset(map(str, COUNTRY_CODE_TO_REGION_CODE))
_NEVER = r"(?!)"
"""Matches no text."""
_PLAIN_PHONE = re.compile(r"\+[1-9][0-9]{5,14}")
# After what a copy brings along has been removed.
_PHONE_SHAPE = re.compile(r"(?:tel:)?\(?[+\uff0b]([0-9()./]{6,30})", re.IGNORECASE)
_MARKS = re.compile(r"[()./]")

_SEPARATORS = frozenset({"Zs", "Zl", "Zp", "Pd", "Cf", "Mn", "Me"})
"""Categories of spaces, dashes, invisible characters, and marks on a character such as those of emoji."""
_OTHER_SEPARATORS = frozenset("\t\n\v\f\r\x85\u2212")

_TYPES: Final[Mapping[str, int]] = {
    # In the order in which the library decides.
    "premium_rate": PhoneNumberType.PREMIUM_RATE,
    "toll_free": PhoneNumberType.TOLL_FREE,
    "shared_cost": PhoneNumberType.SHARED_COST,
    "voip": PhoneNumberType.VOIP,
    "personal_number": PhoneNumberType.PERSONAL_NUMBER,
    "pager": PhoneNumberType.PAGER,
    "uan": PhoneNumberType.UAN,
    "voicemail": PhoneNumberType.VOICEMAIL,
    "fixed_line_or_mobile": PhoneNumberType.FIXED_LINE_OR_MOBILE,
    "fixed_line": PhoneNumberType.FIXED_LINE,
    "mobile": PhoneNumberType.MOBILE,
}
_TYPE_NAMES: Final = {number: name for name, number in _TYPES.items()}

_EQUAL_FORMS: Final[Mapping[int, Sequence[tuple[re.Pattern[str], str]]]] = {
    calling_code: [(re.compile(pattern), form) for pattern, form in forms]
    for calling_code, forms in {
        # Argentina: a 9 before mobile numbers from abroad, which many leave out (ENACOM's numbering plan, E.164).
        54: [(r"(11\d{8}|[23]\d{9})", r"+549\1")],
        # Mexico: no 1 before mobile numbers since 3 August 2019 (IFT); WhatsApp's older ids have it.
        52: [(r"1([2-9]\d{9})", r"+52\1")],
        # Brazil: a 9 before mobile numbers since 2016 (Anatel, Resolution 553/2010); WhatsApp's older ids lack it.
        55: [(r"([1-9]{2})([6-9]\d{7})", r"+55\g<1>9\2")],
        # Palestine: Israel's code, by which its mobile numbers were reached before 1999, still works (ITU, code 970).
        972: [(r"(5[69]\d{7})", r"+970\1")],
        # Kosovo: its mobile numbers had codes of Monaco and Slovenia until 2017 (ITU, code 383 of 15 December 2016).
        377: [(r"(4[45]\d{6})", r"+383\1")],
        386: [(r"(4[39]\d{6})", r"+383\1")],
        # Benin: 01 before every number since 30 November 2024 (ARCEP Bénin); WhatsApp's older ids lack it.
        229: [(r"([2-79]\d{7})", r"+22901\1")],
        # Ivory Coast: two digits of the operator since 31 January 2021 (ARTCI); WhatsApp's older ids lack them.
        225: [
            (r"([04-9][0-3]\d{6})", r"+22501\1"),
            (r"([04-9][4-6]\d{6})", r"+22505\1"),
            (r"([04-9][7-9]\d{6})", r"+22507\1"),
        ],
        # Gabon: a digit of the operator, and no 0 from abroad, since 15 November 2019 (ARCEP Gabon).
        241: [(r"0?([256]\d{6})", r"+2416\1"), (r"0?([47]\d{6})", r"+2417\1")],
    }.items()
}
"""National numbers that are also written in another form, by calling code, and the form that they are sent to."""

_COUNTED_AS: Final[Mapping[str, str]] = dict(
    pair.split(":") for pair in ("AX:FI", "SJ:NO", "MF:GP", "BL:GP", "CC:AU", "CX:AU", "EH:MA", "VA:IT", "TA:SH")
)
"""Regions whose mobile numbers the library counts as those of another region."""

# Addresses in which the library would change nothing but the case of letters. A label with hyphens as its third and
# fourth character (Punycode) and the reserved top-level domains are left to the library.
_LABEL = r"(?!..--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_RESERVED = r"(?:arpa|invalid|local|localhost|onion|test)"
_PLAIN_EMAIL = re.compile(
    r"(?=.{1,254}\Z)[a-z0-9_!#$%&'*+/=?^`{|}~-]+(?:\.[a-z0-9_!#$%&'*+/=?^`{|}~-]+)*(?<!.{65})"
    rf"@(?:{_LABEL}\.)+(?!{_RESERVED}\Z)(?!..--)[a-z](?:[a-z0-9-]{{0,61}}[a-z])?\Z",
    re.ASCII,
)


class Destination(NamedTuple):
    """A validated destination in its normalized spelling."""

    normalized: str
    """The spelling that is digested, limited and sent to: `bob@example.com`, `+6281234567890`."""
    masked: str
    """The spelling that may be shown: `b***@example.com`, `+62*********90`."""
    country: str = ""
    """ISO 3166 code of a phone number's country, such as `ID`; `001` for numbers of no country; empty for e-mail."""
    calling_prefix: str = ""
    """Plus sign and country calling code of a phone number, such as `+62`; empty for e-mail."""
    type: str = ""
    """One of server.setting_types.NumberType; empty for e-mail."""


def parse_email(text: str) -> Destination:
    """Parse an e-mail address: lower case, domain in ASCII (Punycode). Makes no DNS look-ups.

    The local part is lower-cased too: RFC 5321 lets a mail system distinguish `Bob` from `bob`, but none in use does,
    and each spelling would have its own limits. Dots and plus tags stay, as some mail systems distinguish them.
    Raises ValueError, without the text, for an invalid address.
    """
    lowered = text.lower()
    if not _PLAIN_EMAIL.match(lowered):
        lowered = _validated_email(lowered)
    local, _, domain = lowered.rpartition("@")
    return Destination(lowered, f"{local[0] if len(local) > 1 else ''}***@{domain}")


def parse_phone(text: str, extra_prefixes: tuple[str, ...] = ()) -> Destination:
    """Parse a phone number to E.164, in the form that it is sent to.

    Reads digits of any script, `tel:` and `(+62) …`; drops spaces, dashes, brackets, invisible characters, and a
    national prefix as in `+44 (0)20 …`. A possible number with one of `extra_prefixes` (+88064) is a mobile number,
    whatever its numbering plan says. Raises ValueError, without the text, for a number without a plus sign and calling
    code, or of no numbering plan.
    """
    if _PLAIN_PHONE.fullmatch(text) and (number := _NUMBERING.find(text)):
        found = _phone(text, number.region, number.calling_prefix, number.type)
    else:
        found = _validated_phone(_plain_number(text), extra_prefixes)
    return found._replace(type="mobile") if extra_prefixes and found.normalized.startswith(extra_prefixes) else found


PARSERS: Final[Mapping[Channel, Callable[[str], Destination]]] = {
    Channel.EMAIL: parse_email,
    Channel.WHATSAPP: parse_phone,
    Channel.SMS: parse_phone,
}
"""The parser of each channel's destinations; raises ValueError, without the text, for an invalid one."""
PHONE_CHANNELS: Final = frozenset(channel for channel, parse in PARSERS.items() if parse is parse_phone)
"""The channels to phone numbers, whose unverified credits are limited against SMS pumping."""


def plain_digits(text: str) -> str:
    """The text with digits of every script as 0 to 9, and without what a copy brings along.

    That is spaces, dashes and invisible characters; any other character stays.
    """
    return "".join(map(_plain_character, text))


@lru_cache(maxsize=4096)
def _plain_character(character: str) -> str:
    if (digit := decimal(character, None)) is not None:
        return str(digit)
    return "" if category(character) in _SEPARATORS or character in _OTHER_SEPARATORS else character


def check_areas(areas: Iterable[str]) -> None:
    """Raise ValueError for a country or prefix that matches no number that may be sent to."""
    for area in areas:
        if area.startswith("+"):
            calling_codes = map(str, COUNTRY_CODE_TO_REGION_CODE)
            if not any(area[1:].startswith(code) or code.startswith(area[1:]) for code in calling_codes):
                raise ValueError(f"{area} matches no phone number: no calling code begins so")
        elif area in _COUNTED_AS:
            raise ValueError(f"{area} matches no mobile number: those of {area} count as {_COUNTED_AS[area]}")
        elif area not in SUPPORTED_REGIONS and area != NO_COUNTRY:
            raise ValueError(f"{area} matches no phone number: it is no country's ISO 3166 code")


def library_time() -> datetime:
    """When the library's data were current: its release, or the installation of a version that is not pinned."""
    if phonenumbers.__version__ == LIBRARY_VERSION:
        return datetime(LIBRARY_DATE.year, LIBRARY_DATE.month, LIBRARY_DATE.day, tzinfo=UTC)
    return datetime.fromtimestamp(Path(phonenumbers.__file__).stat().st_mtime, UTC)


def _phone(normalized: str, region: str, calling_prefix: str, number_type: str) -> Destination:
    stars = "*" * (len(normalized) - len(calling_prefix) - 2)
    return Destination(normalized, f"{calling_prefix}{stars}{normalized[-2:]}", region, calling_prefix, number_type)


def _validated_email(text: str) -> str:
    try:
        address = validate_email(text, check_deliverability=False, strict=True)
    except EmailNotValidError:
        # Without the cause, whose text quotes the address.
        raise ValueError("not a valid e-mail address") from None
    return f"{address.local_part}@{address.ascii_domain}"


def _plain_number(text: str) -> str:
    found = _PHONE_SHAPE.fullmatch(plain_digits(text))
    if not found:
        raise ValueError("not a phone number with a plus sign and country calling code")
    return "+" + _MARKS.sub("", found[1])


def _validated_phone(text: str, extra_prefixes: tuple[str, ...]) -> Destination:
    """Parse with the library; in another form of the number if that is valid."""
    try:
        number = phonenumbers.parse(text, None)
    except NumberParseException:
        raise ValueError("not a possible phone number") from None
    normalized = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    calling_code = int(number.country_code or 0)
    national = normalized.removeprefix(f"+{calling_code}")
    for pattern, form in _EQUAL_FORMS.get(calling_code, ()):
        if same := pattern.fullmatch(national):
            other = phonenumbers.parse(same.expand(form), None)
            if phonenumbers.is_valid_number(other):
                return _valid_phone(same.expand(form), other)
    if phonenumbers.is_valid_number(number):
        return _valid_phone(normalized, number)
    if extra_prefixes and normalized.startswith(extra_prefixes) and phonenumbers.is_possible_number(number):
        return _phone(normalized, COUNTRY_CODE_TO_REGION_CODE[calling_code][0], f"+{calling_code}", "mobile")
    raise ValueError("not a phone number of any country's numbering plan")


def _valid_phone(normalized: str, number: PhoneNumber) -> Destination:
    region = phonenumbers.region_code_for_number(number) or ""
    return _phone(normalized, region, f"+{number.country_code}", _type(phonenumbers.number_type(number), region))


def _type(number_type: int, region: str) -> str:
    name = _TYPE_NAMES.get(number_type, "")
    return "satellite" if name == "mobile" and region == NO_COUNTRY else name


@dataclass(frozen=True, slots=True)
class FoundNumber:
    """What a number's plan says of it."""

    region: str
    """As Destination.country."""
    calling_prefix: str
    type: str


@dataclass(frozen=True, slots=True)
class _Region:
    """The national numbers of a region: those that match `general` and `types`, whose groups are types."""

    leading_digits: re.Pattern[str] | None
    general: re.Pattern[str]
    types: re.Pattern[str]
    found: Mapping[str | None, FoundNumber]
    """By type."""

    def find(self, national: str) -> FoundNumber | None:
        typed = self.general.fullmatch(national) and self.types.fullmatch(national)
        return self.found[typed.lastgroup] if typed else None


@dataclass(frozen=True, slots=True)
class _Plan:
    """The numbering plan of a calling code."""

    national_prefix: re.Pattern[str] | None
    equal_forms: re.Pattern[str] | None
    """National numbers that may be sent to in another form."""
    regions: tuple[_Region, ...]


class Numbering:
    """Finds what its plan says of a plain E.164 number, with the library's patterns but without its parser.

    Only for a number that the library would not change. A number that begins with a national prefix, does not fit its
    numbering plan, or may be sent to in another form, is left to the library.
    """

    def __init__(self) -> None:
        """Compiles a plan when its first number is looked up; there are about 220 calling codes."""
        self._plans: dict[str, _Plan] = {}

    def find(self, number: str) -> FoundNumber | None:
        """What is known of a plus sign and digits; None when the library must decide."""
        for end in range(2, _CALLING_CODE_DIGITS + 2):
            calling_code = number[1:end]
            if calling_code not in _CALLING_CODES:
                continue
            plan = self._plans.get(calling_code)
            if plan is None:
                plan = self._plans[calling_code] = _compile_plan(int(calling_code))
            return _find(plan, number[end:])
        return None


_NUMBERING = Numbering()


def _find(plan: _Plan, national: str) -> FoundNumber | None:
    if national.startswith("0") or (plan.national_prefix and plan.national_prefix.match(national)):
        return None
    if plan.equal_forms and plan.equal_forms.fullmatch(national):
        return None
    for region in plan.regions:
        # As in the library: matching leading digits decide the region, and the number must be valid there.
        if region.leading_digits is not None:
            if region.leading_digits.match(national):
                return region.find(national)
        elif found := region.find(national):
            return found
    return None


def _compile_plan(calling_code: int) -> _Plan:
    names = COUNTRY_CODE_TO_REGION_CODE[calling_code]
    found = [(name, PhoneMetadata.metadata_for_region_or_calling_code(calling_code, name)) for name in names]
    main = found[0][1]
    prefix = main.national_prefix_for_parsing if main else None
    forms = "|".join(pattern.pattern for pattern, _ in _EQUAL_FORMS.get(calling_code, ()))
    regions = tuple(_compile_region(name, calling_code, metadata) for name, metadata in found if metadata)
    return _Plan(re.compile(prefix) if prefix else None, re.compile(forms) if forms else None, regions)


def _compile_region(name: str, calling_code: int, metadata: PhoneMetadata) -> _Region:
    patterns = {each: _pattern(getattr(metadata, each, None)) for each in _TYPES}
    fixed, mobile = patterns["fixed_line"], patterns["mobile"]
    if metadata.same_mobile_and_fixed_line_pattern:
        patterns["fixed_line_or_mobile"] = fixed
    elif fixed and mobile:
        patterns["fixed_line_or_mobile"] = rf"(?={fixed}\Z){mobile}"
    return _Region(
        re.compile(metadata.leading_digits) if metadata.leading_digits else None,
        re.compile(_pattern(metadata.general_desc) or _NEVER),
        re.compile("|".join(f"(?P<{each}>{pattern})" for each, pattern in patterns.items() if pattern) or _NEVER),
        {each: FoundNumber(name, f"+{calling_code}", _type(number, name)) for each, number in _TYPES.items()},
    )


def _pattern(desc: PhoneNumberDesc | None) -> str:
    """The pattern of one type of numbers, with their possible lengths; empty when there are none."""
    if desc is None or not desc.national_number_pattern:
        return ""
    lengths = "|".join(f".{{{length}}}" for length in desc.possible_length if length > 0)
    if desc.possible_length and not lengths:
        return ""
    pattern = f"(?:{desc.national_number_pattern})"
    # The pattern first: most numbers are of another type, which their first digits tell.
    return rf"(?={pattern}\Z)(?:{lengths})" if lengths else pattern
