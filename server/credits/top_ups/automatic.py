"""Automatic top-ups: an organization's settings, card, consent and state, and what each event makes of them.

Functions here are pure: they take an AutomaticTopUp and return the changed one. `automatic_store` commits it.

An order needs everything at once: enabled, with consent and card; a balance below the threshold; no unfinished top-up,
manual or automatic; and room below the month's cap. One top-up lifts the balance to the threshold, which is at most its
credits: so each crossing is charged once. A top-up that ends unpaid, or that a person must look at, switches automatic
top-ups off: only a new consent switches them on again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from server.credits.accounts import Account
from server.credits.stripe.cards import Card
from server.credits.top_ups.state_machine import UNFINISHED, TopUp, TopUpFlag, TopUpStatus, TopUpTerms, start_canceling
from server.errors import BillingAddressMissing, CardMissing, ConsentMissing, FieldViolation, InvalidFields

_MONTHS_OF_A_YEAR = 12
_OFF_REASONS = {TopUpStatus.RESOLVED: TopUpStatus.REVIEW.value}


class AutomaticTopUpState(StrEnum):
    """The state of automatic top-ups; pulsa.credit.v1.AutomaticTopUpState defines each for callers."""

    OFF = "OFF"
    READY = "READY"
    BUYING = "BUYING"
    DECLINED = "DECLINED"
    CAP_REACHED = "CAP_REACHED"
    SWITCHED_OFF = "SWITCHED_OFF"


@dataclass(frozen=True, slots=True)
class AutomaticTopUp:
    """An organization's automatic top-ups; see pulsa.credit.v1.AutomaticTopUp."""

    organization_id: str
    next_attempt_time: datetime
    """No order before this time."""
    is_enabled: bool = False
    threshold_credits: int = 0
    credits: int = 0
    currency_code: str = ""
    monthly_credit_cap: int = 0
    billing_email: str = ""
    billing_name: str = ""
    billing_address: Mapping[str, str] = field(default_factory=dict)
    """By Stripe's names; empty for none."""
    tax_id: Mapping[str, str] = field(default_factory=dict)
    """`type` and `value`, or empty."""
    payment_method_id: str | None = None
    """Stripe's id of the saved card; None without one."""
    card_brand: str = ""
    card_last4: str = ""
    card_expire_month: int = 0
    card_expire_year: int = 0
    card_save_time: datetime | None = None
    setup_session_id: str = ""
    """Of the page on which the last card was saved, also after the card was removed."""
    setup_time: datetime | None = None
    """When that page was made: a card of an older page does not replace a newer one's."""
    methods_to_detach: tuple[str, ...] = ()
    """Cards that are no longer used here and are still to be removed at Stripe."""
    consent_text: str = ""
    consent_given_by: str = ""
    consent_time: datetime | None = None
    top_up_id: UUID | None = None
    """The last top-up that was ordered under the settings in force."""
    failed_charges: int = 0
    """Since the last one that succeeded."""
    last_failure: str = ""
    cap_reached: bool = False
    """The last order was refused by the month's cap."""
    off_reason: str = ""
    """Why the server switched it off; empty when it did not."""


@dataclass(frozen=True, slots=True)
class Consent:
    """A person's agreement to automatic charges."""

    text: str
    given_by: str


SETTINGS = (
    *("is_enabled", "threshold_credits", "credits", "currency_code", "monthly_credit_cap", "billing_email"),
    *("billing_name", "billing_address", "tax_id"),
)
"""The fields that an organization chooses."""


def choose(
    row: AutomaticTopUp, changes: Mapping[str, Any], consent: Consent, terms: TopUpTerms, *, now: datetime
) -> AutomaticTopUp:
    """Return the row with the changed settings, as a fresh start if it is enabled then.

    Who switches it off also takes note of why the server did. Raises InvalidFields, CardMissing, ConsentMissing and
    BillingAddressMissing for what may not be enabled.
    """
    row = replace(row, **changes)
    if "is_enabled" in changes:
        row = replace(row, off_reason="")
    if not row.is_enabled:
        return row
    if violations := _violations(row):
        raise InvalidFields(violations=violations)
    if row.payment_method_id is None:
        raise CardMissing
    if not consent.text:
        raise ConsentMissing
    if terms.automatic_tax and row.currency_code not in terms.tax_rates and not row.billing_address:
        raise BillingAddressMissing
    return replace(
        _afresh(row, now=now), consent_text=consent.text, consent_given_by=consent.given_by, consent_time=now
    )


def _violations(row: AutomaticTopUp) -> tuple[FieldViolation, ...]:
    rules = {
        "threshold_credits": (1 <= row.threshold_credits <= row.credits, "1 to credits, to be enabled"),
        "currency_code": (row.currency_code, "set, to be enabled"),
        "monthly_credit_cap": (row.monthly_credit_cap >= row.credits, "at least credits, to be enabled"),
        "billing_email": (row.billing_email, "set, to be enabled"),
    }
    return tuple(
        FieldViolation(f"automatic_settings.{name}", rule) for name, (holds, rule) in rules.items() if not holds
    )


def _afresh(row: AutomaticTopUp, *, now: datetime) -> AutomaticTopUp:
    return replace(
        row, failed_charges=0, last_failure="", off_reason="", cap_reached=False, next_attempt_time=now, top_up_id=None
    )


def is_due(row: AutomaticTopUp, account: Account, *, now: datetime) -> bool:
    """Whether the balance calls for an order; a pause after a failure, a suspension and the switch forbid it."""
    return (
        row.is_enabled
        and account.available_credits < row.threshold_credits
        and account.suspend_time is None
        and row.next_attempt_time <= now
    )


def refuse_by_cap(row: AutomaticTopUp, *, now: datetime) -> AutomaticTopUp:
    """Return the row after an order that would exceed the month's cap: the next one is in the next month."""
    return replace(row, cap_reached=True, next_attempt_time=next_month(now))


def accept_order(row: AutomaticTopUp, top_up_id: UUID) -> AutomaticTopUp:
    """Return the row after its order."""
    return replace(row, top_up_id=top_up_id, cap_reached=False)


def fits_cap(row: AutomaticTopUp, credits: int, *, month_credits: int) -> bool:
    """Whether the cap has room for these credits beside those that were bought in the month."""
    return month_credits + credits <= row.monthly_credit_cap


def may_charge(row: AutomaticTopUp | None, top_up: TopUp) -> bool:
    """Whether the saved card may be charged for this top-up: never without the consent that it was ordered under."""
    return (
        row is not None and row.is_enabled and row.top_up_id == top_up.top_up_id and row.payment_method_id is not None
    )


def fail_charge(row: AutomaticTopUp, reason: str, terms: TopUpTerms, *, now: datetime) -> AutomaticTopUp:
    """Return the row after a failed charge: a longer pause each time, then it is switched off."""
    failures = row.failed_charges + 1
    row = replace(
        row,
        failed_charges=failures,
        last_failure=reason,
        next_attempt_time=now + terms.charge_pause * 2 ** (failures - 1),
    )
    return switch_off(row, "CHARGES_FAILED") if failures >= terms.charge_failures else row


def switch_off(row: AutomaticTopUp, reason: str) -> AutomaticTopUp:
    """Return the row switched off by the server for this reason, unless it is off."""
    return replace(row, is_enabled=False, off_reason=reason) if row.is_enabled else row


def follow(row: AutomaticTopUp, before: TopUp, after: TopUp, terms: TopUpTerms, *, now: datetime) -> AutomaticTopUp:
    """Return the row after a change of an automatic top-up's status or flags.

    A refund, a dispute and a review count for every automatic top-up, another status only for the one in force.
    """
    new_flags = {*after.flags} - {*before.flags}
    reasons = [flag.value for flag in (TopUpFlag.DISPUTED, TopUpFlag.REFUNDED) if flag in new_flags]
    if after.status is TopUpStatus.REVIEW and before.status is not TopUpStatus.REVIEW:
        reasons.append(after.status.value)
    if reasons:
        return switch_off(row, reasons[0])
    if row.top_up_id != after.top_up_id or before.status is after.status:
        return row
    if after.status is TopUpStatus.PAID:
        return replace(row, failed_charges=0, last_failure="", next_attempt_time=now)
    if after.status is TopUpStatus.FAILED:
        return fail_charge(row, after.failure_reason, terms, now=now)
    return row if after.status in UNFINISHED else switch_off(row, _OFF_REASONS.get(after.status, after.status.value))


def resume(
    row: AutomaticTopUp, unfinished: TopUp | None, *, consented_total: Decimal, now: datetime
) -> tuple[AutomaticTopUp, TopUp | None]:
    """Return the row and its unfinished automatic top-up after a new consent or a new card.

    It is charged now if it is of the settings in force and costs no more than the consent is about (consented_total,
    before tax). Else it is canceled, so that these can be ordered. The top-up is None when nothing of it changes.
    """
    is_waiting = unfinished is not None and unfinished.is_automatic and unfinished.status is not TopUpStatus.CANCELING
    if unfinished is None or not is_waiting or not row.is_enabled:
        return row, None
    is_of_these = (unfinished.credits, unfinished.currency_code) == (row.credits, row.currency_code)
    if is_of_these and unfinished.total <= consented_total:
        charged = replace(unfinished, charge_time=now, next_check_time=now)
        return replace(row, top_up_id=unfinished.top_up_id), charged
    row = replace(row, top_up_id=None)
    if TopUpFlag.PARTLY_PAID in unfinished.flags:
        return row, replace(unfinished, charge_time=None)
    return row, replace(start_canceling(unfinished, TopUpStatus.CANCELED), next_check_time=now)


@dataclass(frozen=True, slots=True)
class SavedCard:
    """A card that a person saved on Stripe's page."""

    card: Card
    setup_session_id: str
    """Of the page."""
    setup_time: datetime
    """When the page was made."""


def save_card_of(row: AutomaticTopUp, saved: SavedCard, *, now: datetime) -> AutomaticTopUp:
    """Return the row with the card, unless it has had that of this page or of a later one.

    The earlier of two cards is to be detached. While a charge fails, the new card is tried at once.
    """
    payment_method_id = saved.card.payment_method_id
    if row.setup_session_id == saved.setup_session_id or payment_method_id in row.methods_to_detach:
        return row
    if row.setup_time is not None and row.setup_time > saved.setup_time:
        return replace(row, methods_to_detach=(*row.methods_to_detach, payment_method_id))
    replaced = (row.payment_method_id,) if row.payment_method_id else ()
    row = replace(
        row,
        payment_method_id=payment_method_id,
        card_save_time=now,
        setup_session_id=saved.setup_session_id,
        setup_time=saved.setup_time,
        methods_to_detach=(*row.methods_to_detach, *replaced),
    )
    row = show_card(row, saved.card)
    return replace(_afresh(row, now=now), top_up_id=row.top_up_id) if row.is_enabled else row


def show_card(row: AutomaticTopUp, card: Card) -> AutomaticTopUp:
    """Return the row with what is shown of its card, which a bank may have renewed; another card changes nothing."""
    if row.payment_method_id != card.payment_method_id:
        return row
    return replace(
        row,
        card_brand=card.brand,
        card_last4=card.last4,
        card_expire_month=card.expire_month,
        card_expire_year=card.expire_year,
    )


def remove_card(row: AutomaticTopUp, *, at_stripe: bool) -> AutomaticTopUp:
    """Return the row without its card, off; `at_stripe`: it was removed there, else it is still to be detached."""
    if row.payment_method_id is None:
        return row
    to_detach = row.methods_to_detach if at_stripe else (*row.methods_to_detach, row.payment_method_id)
    row = switch_off(row, "CARD_REMOVED") if at_stripe else replace(row, is_enabled=False)
    return replace(
        row,
        payment_method_id=None,
        card_brand="",
        card_last4="",
        card_expire_month=0,
        card_expire_year=0,
        card_save_time=None,
        methods_to_detach=to_detach,
    )


def month_of(now: datetime) -> datetime:
    """The beginning of the calendar month (UTC)."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(now: datetime) -> datetime:
    """The beginning of the next calendar month (UTC)."""
    start = month_of(now)
    return start.replace(year=start.year + start.month // _MONTHS_OF_A_YEAR, month=start.month % _MONTHS_OF_A_YEAR + 1)
