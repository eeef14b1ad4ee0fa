"""The numbering plans of phonenumberslite, compiled once per calling code: the same answers, several times faster."""

import re
from dataclasses import dataclass

from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata
from phonenumbers.phonemetadata import PhoneNumberDesc

_CALLING_CODE_DIGITS = 3
_NOTHING = r"(?!)"


@dataclass(frozen=True, slots=True)
class Country:
    """The country that a number belongs to."""

    region: str
    calling_prefix: str


@dataclass(frozen=True, slots=True)
class _Region:
    """One region's numbers: all of the shape `general`, and of at least one of `kinds` (mobile, fixed, …)."""

    country: Country
    leading_digits: re.Pattern[str] | None
    general: re.Pattern[str]
    kinds: re.Pattern[str]

    def has(self, national: str) -> bool:
        return bool(self.general.fullmatch(national) and self.kinds.fullmatch(national))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one calling code's numbers look like."""

    national_prefix: re.Pattern[str] | None
    regions: tuple[_Region, ...]


class Numbering:
    """Knows the country of a plain E.164 number, with the library's own patterns.

    Only where the library would take the number as it stands: a number that begins like a national prefix, a number
    that does not fit its plan, and anything else out of the ordinary is left to the library.
    """

    def __init__(self) -> None:
        """Plans are compiled when a number first asks for them; there are about 220 calling codes."""
        self._plans: dict[str, _Plan] = {}

    def country_of(self, number: str) -> Country | None:
        """The country of a plus sign and digits; None when only the library can tell."""
        for end in range(2, _CALLING_CODE_DIGITS + 2):
            calling_code = number[1:end]
            plan = self._plans.get(calling_code)
            if plan is None:
                if int(calling_code) not in COUNTRY_CODE_TO_REGION_CODE:
                    continue
                plan = self._plans[calling_code] = _compile_plan(int(calling_code))
            return _country(plan, number[end:])
        return None


def _country(plan: _Plan, national: str) -> Country | None:
    if national.startswith("0") or (plan.national_prefix and plan.national_prefix.match(national)):
        return None
    for region in plan.regions:
        # As the library does: leading digits decide the region alone, and then the number must be one of it.
        if region.leading_digits is not None:
            if region.leading_digits.match(national):
                return region.country if region.has(national) else None
        elif region.has(national):
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
        re.compile(_pattern(metadata.general_desc) or _NOTHING),
        re.compile("|".join(dict.fromkeys(pattern for pattern in map(_pattern, kinds) if pattern)) or _NOTHING),
    )


def _pattern(desc: PhoneNumberDesc | None) -> str:
    """The numbers of one kind, their possible lengths included; empty for none."""
    if desc is None or not desc.national_number_pattern:
        return ""
    lengths = "|".join(f".{{{length}}}" for length in desc.possible_length if length > 0)
    if desc.possible_length and not lengths:
        return ""
    return (
        rf"(?=(?:{lengths})\Z)(?:{desc.national_number_pattern})" if lengths else f"(?:{desc.national_number_pattern})"
    )
