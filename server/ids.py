"""Ids: time-ordered UUIDs (version 7 of RFC 9562), and the form of an organization's id."""

import os
import time
from datetime import datetime
from typing import Final
from uuid import UUID

ORGANIZATION_ID: Final = "[A-Za-z0-9._:@-]{1,64}"
"""The pattern of every organization_id, which callers choose."""

MAIL_TOKEN: Final = "[a-z2-7]{39}"  # noqa: S105 - a pattern
"""The pattern of the token by which a report finds the delivery of a mail."""

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_A = 0xFFF << 64
_RANDOM_B = (1 << 62) - 1


def new_id() -> UUID:
    """Return a new UUID: 48 bits of Unix time in milliseconds, then random bits.

    Ids of one time are adjacent in an index, so inserts stay cheap as tables grow. Their time is that of the machine's
    clock: good for an order, not for a decision.
    """
    random = int.from_bytes(os.urandom(10), "big")
    milliseconds = time.time_ns() // 1_000_000
    return UUID(int=milliseconds << 80 | _VERSION_7 | (random & _RANDOM_A) | _VARIANT | (random & _RANDOM_B))


def first_id(moment: datetime) -> UUID:
    """Return the smallest id of a moment: the start of the id range that begins at this time."""
    milliseconds = round(moment.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | _VERSION_7 | _VARIANT)
