"""Destinations: normalized, masked and assigned to a country, as the libraries do it."""

import phonenumbers
import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import example, given, settings
from hypothesis import strategies as st
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata, PhoneNumberFormat

from server.otps.destinations import Numbering, parse_email, parse_phone


@pytest.mark.parametrize(
    ("text", "normalized", "masked"),
    [
        ("bob@example.com", "bob@example.com", "b***@example.com"),
        ("Bob.Smith+x@Mail.Example.CO.ID", "bob.smith+x@mail.example.co.id", "b***@mail.example.co.id"),
        ("b@example.com", "b@example.com", "***@example.com"),
        ("bob@BÜCHER.example", "bob@xn--bcher-kva.example", "b***@xn--bcher-kva.example"),
        ("bob@xn--bcher-kva.example", "bob@xn--bcher-kva.example", "b***@xn--bcher-kva.example"),
        ("JÜRGEN@example.com", "jürgen@example.com", "j***@example.com"),
    ],
)
def test_an_address_is_normalized_and_masked(text: str, normalized: str, masked: str) -> None:
    destination = parse_email(text)

    assert (destination.normalized, destination.masked) == (normalized, masked)
    assert (destination.country, destination.calling_prefix) == ("", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bob",
        "bob@",
        "@example.com",
        "bob@localhost",
        "bob@mail.test",
        "bob@example.com\r\nBcc: eve@example.com",
        "bob smith@example.com",
        '"bob smith"@example.com',
        "Bob <bob@example.com>",
        "bob@[192.0.2.1]",
        "bob..smith@example.com",
        "bob@exa_mple.com",
        "x" * 65 + "@example.com",
        "bob@" + "a." * 126 + "com",
    ],
)
def test_an_invalid_address_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match="e-mail") as raised:
        parse_email(text)

    assert raised.value.__cause__ is None
    assert not text or text not in str(raised.value)


_LOCAL = st.text("abcXYZ019._+-'!#@ \"ü", min_size=1, max_size=70)
_DOMAIN = st.lists(st.text("abXN019-ü_", min_size=1, max_size=8), min_size=1, max_size=4).map(".".join)
_TOP = st.sampled_from(["com", "co.id", "test", "local", "xn--p1ai", "c0m", "1com", "onion", "x-y", "COM"])


@given(st.builds("{}@{}.{}".format, _LOCAL, _DOMAIN, _TOP) | st.emails() | st.text(max_size=30))
@example("a@ab--c.com")
@example("a@xn--a.com")
@example("a" * 64 + "@example.com")
@example("a" * 65 + "@example.com")
@example("a@" + "b" * 63 + ".com")
@example("a@" + "b" * 64 + ".com")
@settings(max_examples=1000, deadline=None)
def test_the_fast_path_for_addresses_answers_as_the_library_does(text: str) -> None:
    try:
        found = validate_email(text.lower(), check_deliverability=False, strict=True)
        expected = f"{found.local_part}@{found.ascii_domain}"
    except EmailNotValidError:
        expected = None

    try:
        answer = parse_email(text).normalized
    except ValueError:
        answer = None

    assert answer == expected
    assert answer is None or parse_email(answer).normalized == answer


@pytest.mark.parametrize(
    ("text", "normalized", "masked", "country", "prefix"),
    [
        ("+6281234567890", "+6281234567890", "+62*********90", "ID", "+62"),
        ("+62 812-3456-7890", "+6281234567890", "+62*********90", "ID", "+62"),
        ("+62 0812 3456 7890", "+6281234567890", "+62*********90", "ID", "+62"),
        ("+44 (0)20 7031 3000", "+442070313000", "+44********00", "GB", "+44"),
        ("+12025550123", "+12025550123", "+1********23", "US", "+1"),
        ("+1 (416) 555-0123", "+14165550123", "+1********23", "CA", "+1"),
        ("+390236618300", "+390236618300", "+39********00", "IT", "+39"),
        ("+80012345678", "+80012345678", "+800******78", "001", "+800"),
    ],
)
def test_a_number_is_normalized_masked_and_has_a_country(
    text: str, normalized: str, masked: str, country: str, prefix: str
) -> None:
    destination = parse_phone(text)

    assert (destination.normalized, destination.masked) == (normalized, masked)
    assert (destination.country, destination.calling_prefix) == (country, prefix)


@pytest.mark.parametrize(
    "text",
    [
        *("", "081234567890", "6281234567890", "+", "+62", "+628", "+999123456789", "+1 800 FLOWERS"),
        *("Tel: +6281234567890", "+6281234567890;ext=5", "+62812345678901234", "+6281234567890\n"),
        *("+٦٢81234567890", "+12125550123x5"),
    ],
)
def test_a_number_outside_every_numbering_plan_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match="phone number") as raised:
        parse_phone(text)

    assert raised.value.__cause__ is None
    assert not text.strip("+") or text not in str(raised.value)


def _examples() -> list[str]:
    """A number of each kind in each region."""
    kinds = ("mobile", "fixed_line", "toll_free", "voip", "premium_rate", "uan", "pager", "shared_cost")
    found = []
    for calling_code, regions in COUNTRY_CODE_TO_REGION_CODE.items():
        for region in regions:
            metadata = PhoneMetadata.metadata_for_region_or_calling_code(calling_code, region)
            numbers = (getattr(metadata, kind) for kind in kinds)
            found += [f"+{calling_code}{n.example_number}" for n in numbers if n and n.example_number]
    return found


_EXAMPLES = _examples()


def _library(text: str) -> tuple[str, str] | None:
    try:
        number = phonenumbers.parse(text, None)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(number):
        return None
    region = phonenumbers.region_code_for_number(number) or ""
    return phonenumbers.format_number(number, PhoneNumberFormat.E164), region


def _answer(text: str) -> tuple[str, str] | None:
    try:
        destination = parse_phone(text)
    except ValueError:
        return None
    return destination.normalized, destination.country


@pytest.mark.parametrize("change", ["", "0", "1"])
def test_the_fast_path_for_numbers_answers_as_the_library_does_in_every_region(change: str) -> None:
    """Each region's own examples, and the same with one more digit after the calling code, like a national prefix."""
    wrong = []
    for number in _EXAMPLES:
        text = number[:3] + change + number[3:]
        if len(text) <= 16 and _answer(text) != _library(text):
            wrong.append(text)

    assert wrong == []


def test_most_numbers_take_the_fast_path() -> None:
    numbering = Numbering()

    taken = sum(numbering.country_of(number) is not None for number in _EXAMPLES)

    assert taken > 0.9 * len(_EXAMPLES)


@given(st.data())
@settings(max_examples=1000, deadline=None)
def test_the_fast_path_for_numbers_answers_as_the_library_does(data: st.DataObject) -> None:
    digits = list(data.draw(st.sampled_from(_EXAMPLES)))
    for _ in range(data.draw(st.integers(0, 4))):
        digits[data.draw(st.integers(1, len(digits) - 1))] = data.draw(st.sampled_from("0123456789"))
    text = "".join(digits[: data.draw(st.integers(7, 16))])

    assert _answer(text) == _library(text)
