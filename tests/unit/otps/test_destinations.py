"""Destinations: normalized, masked and assigned to a country, as the libraries do it."""

import os
from random import Random
from typing import get_args

import phonenumbers
import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import example, given, settings
from hypothesis import strategies as st
from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, SUPPORTED_REGIONS, PhoneMetadata, PhoneNumberFormat

from server.otps.destinations import (
    _COUNTED_AS,
    _TYPES,
    LIBRARY_DATE,
    LIBRARY_VERSION,
    Numbering,
    check_areas,
    library_time,
    parse_email,
    parse_phone,
)
from server.setting_types import NumberType

EQUAL_FORMS = [
    ("+541123456789", "+5491123456789"),
    ("+54 11 15 2345-6789", "+5491123456789"),
    ("+543515551234", "+5493515551234"),
    ("+5215512345678", "+525512345678"),
    ("+553188887777", "+5531988887777"),
    ("+551187654321", "+5511987654321"),
    ("+554778123456", "+5547978123456"),
    ("+972599123456", "+970599123456"),
    ("+972 (0)56 912 3456", "+970569123456"),
    ("+37744123456", "+38344123456"),
    ("+37745123456", "+38345123456"),
    ("+38643123456", "+38343123456"),
    ("+38649123456", "+38349123456"),
    ("+22990123456", "+2290190123456"),
    ("+22507123456", "+2250707123456"),
    ("+22545123456", "+2250545123456"),
    ("+22501123456", "+2250101123456"),
    ("+24107123456", "+24177123456"),
    ("+2416123456", "+24166123456"),
]
"""Pairs of forms of one number, and the one that is sent to."""
WITH_EQUAL_FORMS = ("+54", "+52", "+55", "+972", "+377", "+386", "+229", "+225", "+241")


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
@settings(max_examples=1000)
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
        *("call +6281234567890", "+6281234567890;ext=5", "+62812345678901234", "+62+81234567890", "((+62)8123456789"),
        *("+٦٢x81234567890", "+12125550123x5"),
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


def _library(text: str) -> tuple[str, str, str] | None:
    try:
        number = phonenumbers.parse(text, None)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(number):
        return None
    region = phonenumbers.region_code_for_number(number) or ""
    name = phonenumbers.PhoneNumberType.to_string(phonenumbers.number_type(number)).lower()
    number_type = "satellite" if (region, name) == ("001", "mobile") else name
    return phonenumbers.format_number(number, PhoneNumberFormat.E164), region, number_type


def _answer(text: str) -> tuple[str, str, str] | None:
    try:
        destination = parse_phone(text)
    except ValueError:
        return None
    return destination.normalized, destination.country, destination.type


@pytest.mark.parametrize("change", ["", "0", "1"])
def test_the_fast_path_for_numbers_answers_as_the_library_does_in_every_region(change: str) -> None:
    """Each region's own examples, and the same with one more digit after the calling code, like a national prefix."""
    wrong = []
    for number in _EXAMPLES:
        text = number[:3] + change + number[3:]
        if len(text) <= 16 and not text.startswith(WITH_EQUAL_FORMS) and _answer(text) != _library(text):
            wrong.append(text)

    assert wrong == []


def test_most_numbers_take_the_fast_path() -> None:
    numbering = Numbering()

    taken = sum(numbering.find(number) is not None for number in _EXAMPLES)

    assert taken > 0.9 * len(_EXAMPLES)


@given(st.data())
@settings(max_examples=1000)
def test_the_fast_path_for_numbers_answers_as_the_library_does(data: st.DataObject) -> None:
    digits = list(data.draw(st.sampled_from(_EXAMPLES)))
    for _ in range(data.draw(st.integers(0, 4))):
        digits[data.draw(st.integers(1, len(digits) - 1))] = data.draw(st.sampled_from("0123456789"))
    text = "".join(digits[: data.draw(st.integers(7, 16))])

    assert text.startswith(WITH_EQUAL_FORMS) or _answer(text) == _library(text)


@pytest.mark.parametrize(("other", "sent"), EQUAL_FORMS)
def test_two_forms_of_one_number_are_one_destination(other: str, sent: str) -> None:
    assert parse_phone(other) == parse_phone(sent)
    assert parse_phone(sent).normalized == sent
    assert parse_phone(sent).type in {"mobile", "fixed_line_or_mobile"}


@pytest.mark.parametrize("number", ["+37761234567", "+38631234567", "+972501234567", "+551130031234", "+525512345678"])
def test_a_number_without_another_form_keeps_its_own(number: str) -> None:
    assert _answer(number) == _library(number)


_FULL_WIDTH = "".join(chr(0xFF10 + digit) for digit in range(10))
_PASTED = "+6281234567890".translate(dict(zip(range(0x30, 0x3A), _FULL_WIDTH, strict=True)))


@pytest.mark.parametrize(
    "text",
    [
        "\u202a+62 812\u00a03456\u20117890\u202c",
        " +6281234567890",
        "tel:+62-812-3456-7890",
        "(+62) 812 3456 7890",
        "TEL: +62 (0) 812 3456 7890",
        _PASTED.replace("+", "\uff0b"),
        "+٦٢ ٨١٢ ٣٤٥٦ ٧٨٩٠",
        "+62 812\u20133456\u20137890\n",
        "\ufeff+62\u200b812.3456.7890",
        "\u2066+62/812/3456/7890\u2069",
    ],
)
def test_a_pasted_number_is_read(text: str) -> None:
    assert parse_phone(text) == parse_phone("+6281234567890")


_SCRIPTS = ("0123456789", "٠١٢٣٤٥٦٧٨٩", "۰۱۲۳۴۵۶۷۸۹", "०१२३४५६७८९", _FULL_WIDTH)
_GAPS = ("", "", "", " ", "-", ".", "/", "\u00a0", "\u2011", "\u200b", "\u202f", "\u00ad", " \u2013 ")
SPELLINGS = int(os.environ.get("FUZZ_SPELLINGS", "1500"))


def _spelling(number: str, random: Random) -> str:
    """The number as someone may write or copy it."""
    script = str.maketrans("0123456789", random.choice(_SCRIPTS))
    code = f"+{phonenumbers.parse(number).country_code}"
    rest = "".join(random.choice(_GAPS) + digit for digit in number.removeprefix(code)).translate(script)
    begin = random.choice([code, f"({code})", f"tel:{code}", f" {code}", f"\u202a{code}", code.replace("+", "\uff0b")])
    return begin + rest + random.choice(["", " ", "\u202c", "\n"])


def test_every_spelling_of_a_number_is_one_destination() -> None:
    random = Random(20261128)  # noqa: S311 - not for secrets
    forms = [form for pair in EQUAL_FORMS for form in pair if " " not in form]
    numbers = [number for number in (*_EXAMPLES, *forms) if _answer(number)]
    wrong = []
    for _ in range(SPELLINGS):
        number = random.choice(numbers)
        if _answer(text := _spelling(number, random)) != _answer(number):
            wrong.append(text)

    assert len(numbers) > 900
    assert wrong == []


@pytest.mark.parametrize(
    ("number", "number_type"),
    [
        ("+6281234567890", "mobile"),
        ("+12025550123", "fixed_line_or_mobile"),
        ("+442070313000", "fixed_line"),
        ("+979123456789", "premium_rate"),
        ("+19002345678", "premium_rate"),
        ("+628091234567", "premium_rate"),
        ("+881612345678", "satellite"),
        ("+870773111632", "satellite"),
        ("+80012345678", "toll_free"),
        ("+447012345678", "personal_number"),
        ("+447640123456", "pager"),
    ],
)
def test_a_number_has_its_type(number: str, number_type: str) -> None:
    assert parse_phone(number).type == number_type
    assert number_type in get_args(NumberType)


def test_the_types_of_numbers_are_those_of_the_setting() -> None:
    assert {*_TYPES, "satellite"} == set(get_args(NumberType))


def test_a_number_of_a_range_that_has_just_opened_is_read_with_its_prefix() -> None:
    destination = parse_phone("+62 (0)690 1234 5678", ("+62690",))

    assert destination == ("+6269012345678", "+62*********78", "ID", "+62", "mobile")
    with pytest.raises(ValueError, match="numbering plan"):
        parse_phone("+6269012345678")
    with pytest.raises(ValueError, match="phone number"):
        parse_phone("+626901", ("+62690",))


@pytest.mark.parametrize(
    ("area", "why"),
    [
        ("UK", "UK matches no phone number"),
        ("XX", "XX matches no phone number"),
        ("AX", "those of AX count as FI"),
        ("+999", r"\+999 matches no phone number"),
    ],
)
def test_an_area_without_numbers_is_refused(area: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check_areas(["ID", area])


def test_areas_with_numbers_are_accepted() -> None:
    check_areas(["ID", "GB", "IM", "GP", "001", "+1", "+62812", "+4"])


def test_regions_without_mobile_numbers_of_their_own_are_known() -> None:
    counted_elsewhere = set()
    for region in SUPPORTED_REGIONS:
        example = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
        if example is None or phonenumbers.region_code_for_number(example) != region:
            counted_elsewhere.add(region)

    # The example of the Isle of Man is Britain's, but +44 7624 is its own.
    assert counted_elsewhere - {"IM"} == set(_COUNTED_AS)
    assert parse_phone("+447624123456").country == "IM"


def test_the_date_of_the_data_belongs_to_the_installed_library() -> None:
    assert phonenumbers.__version__ == LIBRARY_VERSION, "after make lock, set LIBRARY_VERSION and LIBRARY_DATE"
    assert library_time().date() == LIBRARY_DATE
