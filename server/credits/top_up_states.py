"""Where a purchase can stand, and where it can go from there."""

from collections.abc import Mapping
from enum import StrEnum


class TopUpStatus(StrEnum):
    """Where a purchase stands; pulsa.credit.v1.TopUpStatus says what each means to a caller."""

    CREATING = "CREATING"
    OPEN = "OPEN"
    CANCELING = "CANCELING"
    PAID = "PAID"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"
    UNCOLLECTIBLE = "UNCOLLECTIBLE"
    REVIEW = "REVIEW"
    FAILED = "FAILED"


_S = TopUpStatus

TRANSITIONS: Mapping[TopUpStatus, frozenset[TopUpStatus]] = {
    _S.CREATING: frozenset({_S.OPEN, _S.PAID, _S.CANCELING, _S.UNCOLLECTIBLE, _S.REVIEW, _S.FAILED}),
    _S.OPEN: frozenset({_S.PAID, _S.CANCELING, _S.CANCELED, _S.UNCOLLECTIBLE, _S.REVIEW}),
    _S.CANCELING: frozenset({_S.PAID, _S.CANCELED, _S.EXPIRED, _S.REVIEW, _S.FAILED}),
    _S.UNCOLLECTIBLE: frozenset({_S.PAID, _S.CANCELED, _S.REVIEW}),
    # Paid wins over everything: should Stripe show money for what had ended here, it is credited all the same.
    _S.CANCELED: frozenset({_S.PAID, _S.REVIEW}),
    _S.EXPIRED: frozenset({_S.PAID, _S.REVIEW}),
    _S.FAILED: frozenset({_S.PAID, _S.REVIEW}),
    _S.PAID: frozenset(),
    _S.REVIEW: frozenset(),  # a person decides
}
"""Every change of status that there is; the README's diagram is checked against it."""

IN_WORK = frozenset({_S.CREATING, _S.CANCELING})
"""Stripe is being asked for something; a crash must be picked up."""

UNFINISHED = IN_WORK | {_S.OPEN}
"""An organization has at most one of these; the database's partial unique index says the same."""

PAYABLE = frozenset({_S.OPEN, _S.UNCOLLECTIBLE})
"""Money may come at any time: looked up at Stripe again and again, in case its webhook is lost."""
