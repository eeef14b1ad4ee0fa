"""Notices: mails to billing contacts about payments, a low balance, the spending cap and automatic top-ups.

The table `notices` is an outbox. Every replica sends from it under a lease; each notice is sent once.
"""

import asyncio
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from psycopg.rows import dict_row

from server.credits.pricing import CURRENCIES
from server.postgres.pool import Pool, acquire, retry_transient
from server.postgres.queries import load_queries
from server.postgres.workers import find_keys
from server.providers.provider import Outcome, OutcomeKind
from server.providers.templates import Rendered, html_document, is_right_to_left, lookup_locales

SQL = load_queries(__file__)
_log = structlog.get_logger(__name__)

SendMail = Callable[[str, Rendered], Awaitable[Outcome]]
"""Sends a mail to an address. Returns an outcome for every provider or network error, within the lease."""
TEXTS: Final[Mapping[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
"""By language, then kind."""

_LEASE = timedelta(minutes=5)
_SHORTEST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=30), timedelta(hours=1)
_MAXIMUM_ATTEMPTS = 10
"""About four hours with the pauses; a later mail would add nothing to the Balance page."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice that this process has claimed."""

    organization_id: str
    notice_id: UUID
    kind: str
    email: str
    details: Mapping[str, Any]
    attempts: int
    """Includes the current attempt."""
    create_time: datetime
    billing_name: str = ""
    """The organization's name on its invoices; empty: it has none."""
    locale: str = ""
    """Of the contact, as in a SendOtp; empty: English."""
    time_zone: str = ""
    """Of the contact, an IANA name; empty: UTC."""


async def send_due_notices(pool: Pool, send_mail: SendMail, *, now: datetime, limit: int) -> int:
    """Send at most `limit` due notices; returns how many were attempted. Replicas may run it at the same time.

    A mail with an unknown outcome is not repeated. After a crash between the mail and its record, the mail is sent
    again when the lease has ended.
    """
    due = await find_keys(pool, SQL.find_due_notices, {"now": now, "limit": limit})
    results = await asyncio.gather(*(_send(pool, send_mail, *row, now=now) for row in due), return_exceptions=True)
    for (organization_id, notice_id), result in zip(due, results, strict=True):
        if isinstance(result, Exception):
            why = type(result).__name__  # the exception's text may contain the address
            _log.error("a notice failed", organization_id=organization_id, notice_id=str(notice_id), why=why)
    return sum(result is True for result in results)


async def remove_notices(pool: Pool, *, before: datetime, limit: int) -> AsyncIterator[int]:
    """Delete notices created earlier that are SENT or FAILED, at most `limit` in each step; yields how many."""
    while count := await _remove_next(pool, before=before, limit=limit):
        yield count


async def _remove_next(pool: Pool, *, before: datetime, limit: int) -> int:
    async with acquire(pool) as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(SQL.find_old_notices, {"before": before, "limit": limit})
        found = await cursor.fetchall()
        if found:
            await cursor.executemany(SQL.remove_notice, found)
    return len(found)


def write_mail(notice: Notice) -> Rendered:
    """The mail, in the contact's language and time zone. Raises KeyError for an unknown kind or missing details."""
    language = next((each for each in lookup_locales(notice.locale) if each in TEXTS), "en")
    texts = TEXTS[language][notice.kind]
    organization = notice.organization_id
    values = {
        **{name: _number(value, language) for name, value in notice.details.items() if isinstance(value, int)},
        "organization": f"{notice.billing_name} ({organization})" if notice.billing_name else organization,
        "time": _time(notice),
    }
    if "total" in notice.details:
        code = notice.details["currency_code"]
        total = f"{code} {_number(Decimal(notice.details['total']).quantize(CURRENCIES[code].charge_unit), language)}"
        if tax := Decimal(notice.details.get("tax", 0)):
            total = TEXTS[language]["with_tax"].format(
                total=total, tax=_number(tax.quantize(Decimal("0.01")), language)
            )
        values |= {"total": total, "invoice_number": notice.details["invoice_number"]}
    if is_right_to_left(texts["text"]):
        # Isolated, so that a name or a number does not change the order of the words around it.
        values = {name: f"\u2068{value}\u2069" for name, value in values.items()}
    # As they are: not a number to write in the language's way, and nothing beside a URL.
    values |= {name: notice.details[name] for name in ("off_reason", "hosted_invoice_url") if name in notice.details}
    subject, text = texts["subject"].format_map(values), texts["text"].lstrip().format_map(values)
    paragraphs = [f"<p>{escape(paragraph)}</p>" for paragraph in text.strip().split("\n\n")]
    return Rendered(subject, text, html_document(language, subject, paragraphs))


def _number(value: Decimal | int, language: str) -> str:
    separators = {",": TEXTS[language]["thousands"], ".": TEXTS[language]["decimal"]}
    return f"{value:,}".translate(str.maketrans(separators))


def _time(notice: Notice) -> str:
    name = notice.time_zone or "UTC"
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):  # this machine has no data on it
        name, zone = "UTC", ZoneInfo("UTC")
    return f"{notice.create_time.astimezone(zone):%Y-%m-%d %H:%M} ({name})"


async def _send(pool: Pool, send_mail: SendMail, organization_id: str, notice_id: UUID, *, now: datetime) -> bool:
    notice = await _claim(pool, organization_id, notice_id, now=now)
    if notice is None:
        return False
    if notice.attempts > _MAXIMUM_ATTEMPTS:  # no attempt recorded an outcome
        outcome = Outcome(OutcomeKind.NOT_SENT, provider="", failure_reason="broke_off")
    else:
        outcome = await send_mail(notice.email, write_mail(notice))
    await _record_outcome(pool, notice, outcome, now=now)
    return True


async def _claim(pool: Pool, organization_id: str, notice_id: UUID, *, now: datetime) -> Notice | None:
    claim = {
        "organization_id": organization_id,
        "notice_id": notice_id,
        "now": now,
        "lease_expire_time": now + _LEASE,
    }
    async with acquire(pool) as connection:
        row = await (await connection.execute(SQL.claim_notice, claim)).fetchone()
        if row is None:
            return None
        notice = Notice(*row)
        to = {"organization_id": organization_id, "email": notice.email}
        contact = await (await connection.execute(SQL.read_contact, to)).fetchone()
    return replace(notice, **dict(zip(("billing_name", "locale", "time_zone"), contact or (), strict=False)))


async def _record_outcome(pool: Pool, notice: Notice, outcome: Outcome, *, now: datetime) -> None:
    status = _status_after(notice, outcome.kind)
    values = {
        "organization_id": notice.organization_id,
        "notice_id": notice.notice_id,
        "attempts": notice.attempts,
        "status": status,
        "next_attempt_time": now + min(_SHORTEST_PAUSE * 2 ** (notice.attempts - 1), _LONGEST_PAUSE),
    }

    async def once() -> None:
        async with acquire(pool) as connection:
            await connection.execute(SQL.record_outcome, values)

    await retry_transient(once)  # without this record the mail would be sent again
    if status == "FAILED":
        _log.error(
            "a notice could not be delivered",
            organization_id=notice.organization_id,
            notice_id=str(notice.notice_id),
            kind=notice.kind,
            why=outcome.failure_reason,
        )


def _status_after(notice: Notice, outcome: OutcomeKind) -> str:
    match outcome:
        case OutcomeKind.ACCEPTED | OutcomeKind.DELIVERED | OutcomeKind.UNKNOWN:
            return "SENT"
        case OutcomeKind.REJECTED_DESTINATION:
            return "FAILED"
        case OutcomeKind.NOT_SENT | OutcomeKind.REJECTED_CONFIGURATION:
            return "PENDING" if notice.attempts < _MAXIMUM_ATTEMPTS else "FAILED"
