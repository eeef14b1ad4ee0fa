"""One spelling for every destination, and a masked one to show: many spellings must not be many identities."""

import re
from typing import NamedTuple

import phonenumbers
from email_validator import EmailNotValidError, validate_email
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberFormat

from server.channels.numbering import Numbering

_PHONE_SHAPE = re.compile(r"\+[0-9 ()./-]{6,30}")
_PLAIN_PHONE = re.compile(r"\+[1-9][0-9]{5,14}")

# Addresses that the library gives back as they came, but for the case of their letters. A label with two hyphens in its
# third and fourth place (Punycode) and the reserved top-level domains are left to the library.
_LABEL = r"(?!..--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_RESERVED = r"(?:arpa|invalid|local|localhost|onion|test)"
_PLAIN_EMAIL = re.compile(
    r"(?=.{1,254}\Z)[a-z0-9_!#$%&'*+/=?^`{|}~-]+(?:\.[a-z0-9_!#$%&'*+/=?^`{|}~-]+)*(?<!.{65})"
    rf"@(?:{_LABEL}\.)+(?!{_RESERVED}\Z)(?!..--)[a-z](?:[a-z0-9-]{{0,61}}[a-z])?\Z",
    re.ASCII,
)

_NUMBERING = Numbering()


class Destination(NamedTuple):
    """Where a message goes, in its only spelling."""

    normalized: str
    """What is digested, limited and sent to: `bob@example.com`, `+6281234567890`."""
    masked: str
    """What may be shown: `b***@example.com`, `+62*********90`."""
    country: str = ""
    """ISO 3166 region of a number, such as `ID`; `001` for numbers of no country; empty for an address."""
    calling_prefix: str = ""
    """The plus sign and country calling code of a number, such as `+62`; empty for an address."""


def parse_email(text: str) -> Destination:
    """The address in lower case with its domain in ASCII (Punycode). Looks nothing up.

    The local part is lower-cased too: RFC 5321 would let a mail system tell `Bob` from `bob`, but none in use does,
    and each spelling would have limits and guesses of its own. Dots and plus tags stay: elsewhere they do matter.
    Raises ValueError, without the text, when it is no address that could get mail.
    """
    lowered = text.lower()
    if not _PLAIN_EMAIL.match(lowered):
        lowered = _checked_email(lowered)
    local, _, domain = lowered.rpartition("@")
    return Destination(lowered, f"{local[0] if len(local) > 1 else ''}***@{domain}")


def parse_phone(text: str) -> Destination:
    """The number in E.164. Spaces and brackets, and a national prefix such as in `+44 (0)20 …`, fall away.

    Raises ValueError, without the text, when it has no plus sign and calling code or no numbering plan has it.
    """
    if _PLAIN_PHONE.fullmatch(text) and (country := _NUMBERING.country_of(text)):
        return _phone(text, country.region, country.calling_prefix)
    number = _checked_phone(text)
    normalized = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    return _phone(normalized, phonenumbers.region_code_for_number(number) or "", f"+{number.country_code}")


def _phone(normalized: str, region: str, calling_prefix: str) -> Destination:
    stars = "*" * (len(normalized) - len(calling_prefix) - 2)
    return Destination(normalized, f"{calling_prefix}{stars}{normalized[-2:]}", region, calling_prefix)


def _checked_email(text: str) -> str:
    try:
        address = validate_email(text, check_deliverability=False, strict=True)
    except EmailNotValidError:
        # Without its cause, which quotes the address.
        raise ValueError("not a valid e-mail address") from None
    return f"{address.local_part}@{address.ascii_domain}"


def _checked_phone(text: str) -> PhoneNumber:
    if not _PHONE_SHAPE.fullmatch(text):
        raise ValueError("not a phone number with a plus sign and country calling code")
    try:
        number = phonenumbers.parse(text, None)
    except NumberParseException:
        raise ValueError("not a possible phone number") from None
    if not phonenumbers.is_valid_number(number):
        raise ValueError("not a phone number of any country's numbering plan")
    return number
