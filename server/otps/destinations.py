"""Parses e-mail addresses and phone numbers into one normalized spelling, and a masked one to show.

Two spellings of one destination must not have limits of their own. A plain phone number is matched with patterns from
the data of the library phonenumbers, and a plain address with a pattern of this module. Any other spelling is parsed by
the libraries phonenumbers and email_validator, which are slower.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import phonenumbers
from email_validator import EmailNotValidError, validate_email
from phonenumbers import (
    COUNTRY_CODE_TO_REGION_CODE,
    NumberParseException,
    PhoneMetadata,
    PhoneNumber,
    PhoneNumberFormat,
)
from phonenumbers.phonemetadata import PhoneNumberDesc

from server.providers.provider import Channel

_CALLING_CODE_DIGITS = 3
_NEVER = r"(?!)"
"""Matches no text."""
_PHONE_SHAPE = re.compile(r"\+[0-9 ()./-]{6,30}")
_PLAIN_PHONE = re.compile(r"\+[1-9][0-9]{5,14}")

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


def parse_phone(text: str) -> Destination:
    """Parse a phone number to E.164. Drops spaces, brackets, and a national prefix as in `+44 (0)20 …`.

    Raises ValueError, without the text, for a number without a plus sign and calling code, or of no numbering plan.
    """
    if _PLAIN_PHONE.fullmatch(text) and (country := _NUMBERING.country_of(text)):
        return _phone(text, country.region, country.calling_prefix)
    number = _validated_phone(text)
    normalized = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    return _phone(normalized, phonenumbers.region_code_for_number(number) or "", f"+{number.country_code}")


PARSERS: Final[Mapping[Channel, Callable[[str], Destination]]] = {
    Channel.EMAIL: parse_email,
    Channel.WHATSAPP: parse_phone,
    Channel.SMS: parse_phone,
}
"""The parser of each channel's destinations; raises ValueError, without the text, for an invalid one."""
PHONE_CHANNELS: Final = frozenset(channel for channel, parse in PARSERS.items() if parse is parse_phone)
"""The channels to phone numbers, whose unverified credits are limited against SMS pumping."""


def _phone(normalized: str, region: str, calling_prefix: str) -> Destination:
    stars = "*" * (len(normalized) - len(calling_prefix) - 2)
    return Destination(normalized, f"{calling_prefix}{stars}{normalized[-2:]}", region, calling_prefix)


def _validated_email(text: str) -> str:
    try:
        address = validate_email(text, check_deliverability=False, strict=True)
    except EmailNotValidError:
        # Without the cause, whose text quotes the address.
        raise ValueError("not a valid e-mail address") from None
    return f"{address.local_part}@{address.ascii_domain}"


def _validated_phone(text: str) -> PhoneNumber:
    if not _PHONE_SHAPE.fullmatch(text):
        raise ValueError("not a phone number with a plus sign and country calling code")
    try:
        number = phonenumbers.parse(text, None)
    except NumberParseException:
        raise ValueError("not a possible phone number") from None
    if not phonenumbers.is_valid_number(number):
        raise ValueError("not a phone number of any country's numbering plan")
    return number


@dataclass(frozen=True, slots=True)
class Country:
    """The country of a phone number."""

    region: str
    """As Destination.country."""
    calling_prefix: str


@dataclass(frozen=True, slots=True)
class _Region:
    """The national numbers of a region: those that match `general` and one of `kinds` (mobile, fixed, …)."""

    country: Country
    leading_digits: re.Pattern[str] | None
    general: re.Pattern[str]
    kinds: re.Pattern[str]

    def contains(self, national: str) -> bool:
        return bool(self.general.fullmatch(national) and self.kinds.fullmatch(national))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The numbering plan of a calling code."""

    national_prefix: re.Pattern[str] | None
    regions: tuple[_Region, ...]


class Numbering:
    """Finds the country of a plain E.164 number, with the library's patterns but without its parser.

    Only for a number that the library would not change. A number that begins with a national prefix, or does not fit
    its numbering plan, is left to the library.
    """

    def __init__(self) -> None:
        """Compiles a plan when its first number is looked up; there are about 220 calling codes."""
        self._plans: dict[str, _Plan] = {}

    def country_of(self, number: str) -> Country | None:
        """The country of a plus sign and digits; None when the library must decide."""
        for end in range(2, _CALLING_CODE_DIGITS + 2):
            calling_code = number[1:end]
            plan = self._plans.get(calling_code)
            if plan is None:
                if int(calling_code) not in COUNTRY_CODE_TO_REGION_CODE:
                    continue
                plan = self._plans[calling_code] = _compile_plan(int(calling_code))
            return _country(plan, number[end:])
        return None


_NUMBERING = Numbering()


def _country(plan: _Plan, national: str) -> Country | None:
    if national.startswith("0") or (plan.national_prefix and plan.national_prefix.match(national)):
        return None
    for region in plan.regions:
        # As in the library: matching leading digits decide the region, and the number must be valid there.
        if region.leading_digits is not None:
            if region.leading_digits.match(national):
                return region.country if region.contains(national) else None
        elif region.contains(national):
            return region.country
    return None


def _compile_plan(calling_code: int) -> _Plan:
    names = COUNTRY_CODE_TO_REGION_CODE[calling_code]
    found = [(name, PhoneMetadata.metadata_for_region_or_calling_code(calling_code, name)) for name in names]
    main = found[0][1]
    prefix = main.national_prefix_for_parsing if main else None
    regions = tuple(_compile_region(name, calling_code, metadata) for name, metadata in found if metadata)
    return _Plan(re.compile(prefix) if prefix else None, regions)


def _compile_region(name: str, calling_code: int, metadata: PhoneMetadata) -> _Region:
    kinds = (
        metadata.mobile,
        metadata.fixed_line,
        metadata.premium_rate,
        metadata.toll_free,
        metadata.shared_cost,
        metadata.voip,
        metadata.personal_number,
        metadata.pager,
        metadata.uan,
        metadata.voicemail,
    )
    return _Region(
        Country(name, f"+{calling_code}"),
        re.compile(metadata.leading_digits) if metadata.leading_digits else None,
        re.compile(_pattern(metadata.general_desc) or _NEVER),
        re.compile("|".join(dict.fromkeys(pattern for pattern in map(_pattern, kinds) if pattern)) or _NEVER),
    )


def _pattern(desc: PhoneNumberDesc | None) -> str:
    """The pattern of one kind of numbers, with their possible lengths; empty when there are none."""
    if desc is None or not desc.national_number_pattern:
        return ""
    lengths = "|".join(f".{{{length}}}" for length in desc.possible_length if length > 0)
    if desc.possible_length and not lengths:
        return ""
    return (
        rf"(?=(?:{lengths})\Z)(?:{desc.national_number_pattern})" if lengths else f"(?:{desc.national_number_pattern})"
    )
