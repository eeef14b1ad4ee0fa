"""Mails to an organization's billing contact: a payment arrived, the balance is low. Each goes out once."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import structlog

from server.channels.channel import Outcome, OutcomeKind
from server.credits.money import CURRENCIES
from server.database.pool import Pool, connection, repeat_transient
from server.database.queries import load_queries

SQL = load_queries(__file__)
log = structlog.get_logger(__name__)

Deliver = Callable[[str, str, str], Awaitable[Outcome]]
"""Mails (address, subject, text); never raises for what a provider or the network does, and ends within the lease."""

_LEASE = timedelta(minutes=5)
_SHORTEST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=30), timedelta(hours=1)
_MOST_ATTEMPTS = 10
"""Some four hours; a mail that late would say nothing that the Balance page does not."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One mail that this process has claimed."""

    organization_id: str
    notice_id: UUID
    kind: str
    email: str
    details: Mapping[str, Any]
    attempts: int
    """This one included."""


async def send_due_notices(pool: Pool, deliver: Deliver, *, now: datetime, limit: int) -> int:
    """Send the notices whose time has come; how many were tried. Safe to run in many replicas at once.

    A mail that may have gone out is not repeated. A crash between the mail and its record repeats it after the lease.
    """
    async with connection(pool) as lent:
        due = await (await lent.execute(SQL.find_due_notices, {"now": now, "limit": limit})).fetchall()
    results = await asyncio.gather(*(_send(pool, deliver, *row, now=now) for row in due), return_exceptions=True)
    for (organization_id, notice_id), result in zip(due, results, strict=True):
        if isinstance(result, Exception):
            why = type(result).__name__  # its text may hold the address
            log.error("a notice broke off", organization_id=organization_id, notice_id=str(notice_id), why=why)
    return sum(result is True for result in results)


def write_mail(notice: Notice) -> tuple[str, str]:
    """Subject and text, in plain English."""
    details = notice.details
    available = f"{details['available_credits']:,} credits"
    match notice.kind:
        case "PAYMENT_CONFIRMED":
            charge_unit = CURRENCIES[details["currency_code"]].charge_unit
            total = f"{details['currency_code']} {Decimal(details['total']).quantize(charge_unit):,}"
            text = f"""Thank you. Your payment of {total} for invoice {details["invoice_number"]} has arrived.

{details["credits"]:,} credits were added to {notice.organization_id}, which now has {available}.
"""
            return f"Payment received: {details['credits']:,} credits added", text
        case "BALANCE_LOW":
            threshold = f"its alert threshold of {details['low_balance_threshold']:,}"
            text = f"""{notice.organization_id} has {available} left, fewer than {threshold}.

Once the credits are used up, no more codes are sent. Buy more on the Balance page in good time.
"""
            return "Your OTP credits are running low", text
        case unknown:
            raise ValueError(f"there is no mail for a notice of kind {unknown}")


async def _send(pool: Pool, deliver: Deliver, organization_id: str, notice_id: UUID, *, now: datetime) -> bool:
    notice = await _claim(pool, organization_id, notice_id, now=now)
    if notice is None:
        return False
    if notice.attempts > _MOST_ATTEMPTS:  # every one of them broke off
        outcome = Outcome(OutcomeKind.NOT_SENT, provider="", failure_reason="broke_off")
    else:
        outcome = await deliver(notice.email, *write_mail(notice))
    await _settle(pool, notice, outcome, now=now)
    return True


async def _claim(pool: Pool, organization_id: str, notice_id: UUID, *, now: datetime) -> Notice | None:
    claim = {
        "organization_id": organization_id,
        "notice_id": notice_id,
        "now": now,
        "lease_expire_time": now + _LEASE,
    }
    async with connection(pool) as lent:
        row = await (await lent.execute(SQL.claim_notice, claim)).fetchone()
    return Notice(*row) if row else None


async def _settle(pool: Pool, notice: Notice, outcome: Outcome, *, now: datetime) -> None:
    status = _status_after(notice, outcome.kind)
    values = {
        "organization_id": notice.organization_id,
        "notice_id": notice.notice_id,
        "attempts": notice.attempts,
        "status": status,
        "next_attempt_time": now + min(_SHORTEST_PAUSE * 2 ** (notice.attempts - 1), _LONGEST_PAUSE),
    }

    async def once() -> None:
        async with connection(pool) as lent:
            await lent.execute(SQL.settle_notice, values)

    await repeat_transient(once)  # it went out: forgetting that would send it again
    if status == "FAILED":
        log.error(
            "a notice could not be delivered",
            organization_id=notice.organization_id,
            notice_id=str(notice.notice_id),
            kind=notice.kind,
            why=outcome.failure_reason,
        )


def _status_after(notice: Notice, outcome: OutcomeKind) -> str:
    match outcome:
        case OutcomeKind.ACCEPTED | OutcomeKind.UNKNOWN:
            return "SENT"
        case OutcomeKind.REJECTED_DESTINATION:
            return "FAILED"
        case OutcomeKind.NOT_SENT | OutcomeKind.REJECTED_CONFIGURATION:
            return "PENDING" if notice.attempts < _MOST_ATTEMPTS else "FAILED"
