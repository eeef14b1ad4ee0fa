"""How many SMS a text costs: 160 characters of the GSM alphabet in one, or 70 as soon as one is not in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# 3GPP TS 23.038, section 6.2.1: the default alphabet, and its extension, whose characters cost two.
_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENDED = frozenset("\f^{}\\[~]|€")
_GSM = _BASIC | _EXTENDED
_BEYOND_UTF16_UNIT = 0xFFFF


class Encoding(StrEnum):
    """The two alphabets of a text message."""

    GSM_7 = "GSM-7"
    UCS_2 = "UCS-2"


@dataclass(frozen=True, slots=True)
class Segments:
    """What the network makes, and bills, of a text."""

    encoding: Encoding
    count: int


def segments(text: str) -> Segments:
    """The alphabet and the number of messages that carriers bill for this text; an empty text is one."""
    if _GSM.issuperset(text):
        costs = [2 if character in _EXTENDED else 1 for character in text]
        return Segments(Encoding.GSM_7, _count(costs, alone=160, joined=153))
    # Characters beyond the first plane (most emoji) are two units of UTF-16.
    costs = [2 if ord(character) > _BEYOND_UTF16_UNIT else 1 for character in text]
    return Segments(Encoding.UCS_2, _count(costs, alone=70, joined=67))


def _count(costs: Iterable[int], *, alone: int, joined: int) -> int:
    """One message holds `alone` units; each of several holds `joined`, and splits no character."""
    costs = list(costs)
    if sum(costs) <= alone:
        return 1
    count, used = 1, 0
    for cost in costs:
        if used + cost > joined:
            count, used = count + 1, 0
        used += cost
    return count
