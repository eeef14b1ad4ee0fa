"""Ids: time-ordered UUIDs (version 7 of RFC 9562), and the form of an organization's id."""

import os
import time
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, SafeUUID

ORGANIZATION_ID: Final = "[A-Za-z0-9._:@-]{1,64}"
"""The pattern of every organization_id, which callers choose."""

MAIL_TOKEN: Final = "[a-z2-7]{39}"  # noqa: S105 - a pattern
"""The pattern of the token by which a report finds the delivery of a mail."""

_VERSION_7 = 0x7 << 76
_GREGORIAN_MILLISECONDS = 12_219_292_800_000
"""From the beginning of versions 1 and 6, on 1582-10-15, to that of Unix time."""
_VARIANT = 0b10 << 62
_RANDOM_BYTES = 10
_RANDOM = 0xFFF << 64 | (1 << 62) - 1


_set_number: Final = vars(UUID)["int"].__set__
_set_safety: Final = vars(UUID)["is_safe"].__set__
_UNKNOWN: Final = SafeUUID.unknown

_LONGEST_WAIT: Final = timedelta(hours=1)
"""Longer than a call lasts, and than an OTP can be resent; and by how much the clocks that make ids may differ."""


def new_id(moment: datetime | None = None) -> UUID:
    """Return a new UUID: 48 bits of Unix time in milliseconds, then random bits.

    Ids of one time are adjacent in an index, so inserts stay cheap as tables grow. The time is `moment`. None: that of
    the machine's clock, which is good for an order, not for a decision.
    """
    (made,) = new_ids(1, moment)
    return made


def new_ids(count: int, moment: datetime | None = None) -> list[UUID]:
    """Return new UUIDs of one moment: as `new_id` for each, in a third of the time."""
    milliseconds = time.time_ns() // 1_000_000 if moment is None else round(moment.timestamp() * 1000)
    fixed, random = milliseconds << 80 | _VERSION_7 | _VARIANT, os.urandom(_RANDOM_BYTES * count)
    return [
        _id(fixed | int.from_bytes(random[start : start + _RANDOM_BYTES]) & _RANDOM)
        for start in range(0, _RANDOM_BYTES * count, _RANDOM_BYTES)
    ]


def parse_id(text: str) -> UUID:
    """The UUID of a text with the usual hyphens, which was validated: as UUID(text), in half of the time."""
    return _id(int(text.replace("-", ""), 16))


def _id(number: int) -> UUID:
    """As UUID(int=number), in a third of the time: each OTP has three, and UUID looks which argument it was given."""
    made = object.__new__(UUID)
    _set_number(made, number)
    _set_safety(made, _UNKNOWN)
    return made


def first_id(moment: datetime) -> UUID:
    """Return the smallest id of a moment: the start of the id range that begins at this time."""
    milliseconds = round(moment.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | _VERSION_7 | _VARIANT)


def first_otp_id(since: UUID | datetime) -> UUID:
    """Return a lower bound of the OTPs' ids of a delivery, or of all deliveries since a moment.

    With it PostgreSQL opens only the partitions from there on.
    """
    if isinstance(since, datetime):
        return first_id(since - _LONGEST_WAIT)
    return UUID(int=max(0, since.int - (_LONGEST_WAIT // timedelta(milliseconds=1) << 80)))


def is_older(time_ordered: UUID, moment: datetime) -> bool:
    """Whether a UUID that tells its time (version 1, 6 or 7) is from before a moment; False for any other UUID."""
    number = time_ordered.int
    match number >> 76 & 0xF:
        case 7:
            milliseconds = number >> 80
        case 1:
            milliseconds = time_ordered.time // 10_000 - _GREGORIAN_MILLISECONDS
        case 6:
            milliseconds = (number >> 80 << 12 | number >> 64 & 0xFFF) // 10_000 - _GREGORIAN_MILLISECONDS
        case _:
            return False
    return milliseconds < moment.timestamp() * 1000
