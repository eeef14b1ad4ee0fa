"""Counts SMS segments: one holds 160 characters of the GSM alphabet, or 70 if any character is not in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# 3GPP TS 23.038, section 6.2.1: the default alphabet, and its extension, whose characters take two septets.
_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENDED = frozenset("\f^{}\\[~]|€")
_GSM = _BASIC | _EXTENDED
_BEYOND_UTF16_UNIT = 0xFFFF


class Encoding(StrEnum):
    """The encodings of an SMS."""

    GSM_7 = "GSM-7"
    UCS_2 = "UCS-2"


@dataclass(frozen=True, slots=True)
class Segments:
    """The encoding of a text, and the number of SMS that the carrier bills for it."""

    encoding: Encoding
    count: int


def segments(text: str) -> Segments:
    """The segments of a text; an empty text takes one."""
    if _GSM.issuperset(text):
        costs = [2 if character in _EXTENDED else 1 for character in text]
        return Segments(Encoding.GSM_7, _count(costs, alone=160, joined=153))
    # Characters outside the Basic Multilingual Plane (most emoji) take two UTF-16 units.
    costs = [2 if ord(character) > _BEYOND_UTF16_UNIT else 1 for character in text]
    return Segments(Encoding.UCS_2, _count(costs, alone=70, joined=67))


def _count(costs: Iterable[int], *, alone: int, joined: int) -> int:
    """A single segment holds `alone` units; each of several holds `joined`. No character is split between two."""
    costs = list(costs)
    if sum(costs) <= alone:
        return 1
    count, used = 1, 0
    for cost in costs:
        if used + cost > joined:
            count, used = count + 1, 0
        used += cost
    return count
