"""The row of one purchase. Every function joins the caller's transaction.

Lock order: the account first, then the top-up. A transaction that needs only the top-up locks only that.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from server.credits.top_up_states import TRANSITIONS, TopUpStatus
from server.database.pool import Connection
from server.database.queries import load_queries

SQL = load_queries(__file__)
NEWEST = UUID(int=2**128 - 1)
"""Comes after every id: the place where a history begins."""


@dataclass(frozen=True, slots=True)
class TopUp:
    """One purchase of credits through one Stripe invoice."""

    organization_id: str
    top_up_id: UUID
    status: TopUpStatus
    end_status: TopUpStatus | None
    """What CANCELING leads to, unless it is paid first."""
    failure_reason: str
    """A stable word for FAILED and REVIEW, and for CANCELING that leads there."""
    flags: tuple[str, ...]
    """What happened besides and needs a person: see Flag."""
    request_id: UUID
    request_fingerprint: bytes
    credits: int
    currency_code: str
    unit_price: Decimal
    total: Decimal
    """Before tax."""
    created_by: str
    create_time: datetime
    stripe_parameters: dict[str, Any]
    """Frozen: see payments.orders."""
    attempt: int
    """Part of the idempotency keys; a new one is begun only when it is known what the last one left."""
    attempt_time: datetime
    next_check_time: datetime
    """Not to be worked on before."""
    stripe_customer_id: str | None = None
    stripe_invoice_id: str | None = None
    invoice_number: str = ""
    invoice_total: Decimal | None = None
    """What the invoice asks for, with tax; known once it is OPEN."""
    hosted_invoice_url: str = ""
    invoice_pdf_url: str = ""
    links_fetch_time: datetime | None = None
    due_time: datetime | None = None
    paid_time: datetime | None = None
    cancel_time: datetime | None = None
    lease_expire_time: datetime | None = None
    """Until then one worker has it; None when nobody has."""


async def insert_top_up(connection: Connection, top_up: TopUp) -> None:
    """Write a new purchase. The database refuses a second unfinished one and a second one per request_id."""
    await connection.execute(SQL.insert_top_up, _values(top_up))


async def find_top_up(connection: Connection, organization_id: str, top_up_id: UUID) -> TopUp | None:
    """The purchase as last committed, or None."""
    return await _one(connection, SQL.find_top_up, organization_id, top_up_id)


async def lock_top_up(connection: Connection, organization_id: str, top_up_id: UUID) -> TopUp | None:
    """The purchase, or None; nobody else changes it until this transaction ends."""
    return await _one(connection, SQL.lock_top_up, organization_id, top_up_id)


async def list_top_ups(
    connection: Connection, organization_id: str, *, statuses: Iterable[TopUpStatus], before: UUID, limit: int
) -> list[TopUp]:
    """At most `limit` purchases in these states, newest first, from the one before `before`."""
    cursor = await connection.execute(
        SQL.list_top_ups,
        {"organization_id": organization_id, "statuses": list(statuses), "before": before, "limit": limit},
    )
    return [_top_up(row) for row in await cursor.fetchall()]


async def find_by_request_id(connection: Connection, organization_id: str, request_id: UUID) -> TopUp | None:
    """The purchase that this request_id made, or None."""
    cursor = await connection.execute(
        SQL.find_by_request_id, {"organization_id": organization_id, "request_id": request_id}
    )
    row = await cursor.fetchone()
    return await find_top_up(connection, organization_id, row[0]) if row else None


async def find_unfinished(connection: Connection, organization_id: str) -> TopUp | None:
    """The one purchase that is under way, or None."""
    cursor = await connection.execute(SQL.find_unfinished, {"organization_id": organization_id})
    row = await cursor.fetchone()
    return await find_top_up(connection, organization_id, row[0]) if row else None


async def find_due_top_ups(connection: Connection, *, now: datetime, limit: int) -> list[tuple[str, UUID]]:
    """Organization and id of purchases that wait to be worked on or looked up, longest waiting first."""
    cursor = await connection.execute(SQL.find_due_top_ups, {"now": now, "limit": limit})
    return [(row[0], row[1]) for row in await cursor.fetchall()]


async def write_top_up(connection: Connection, *, before: TopUp, after: TopUp) -> None:
    """Store a purchase that was changed under its lock. Raises ValueError for a change of status that is none."""
    if after.status is not before.status and after.status not in TRANSITIONS[before.status]:
        raise ValueError(f"a top-up cannot go from {before.status} to {after.status}")
    if after != before:
        await connection.execute(SQL.write_top_up, _values(after))


async def _one(connection: Connection, query: str, organization_id: str, top_up_id: UUID) -> TopUp | None:
    cursor = await connection.execute(query, {"organization_id": organization_id, "top_up_id": top_up_id})
    row = await cursor.fetchone()
    return _top_up(row) if row else None


def _top_up(row: tuple[Any, ...]) -> TopUp:
    organization_id, top_up_id, status, end_status, failure_reason, flags, *rest = row
    ends = TopUpStatus(end_status) if end_status else None
    return TopUp(organization_id, top_up_id, TopUpStatus(status), ends, failure_reason, tuple(flags), *rest)


def _values(top_up: TopUp) -> dict[str, Any]:
    return asdict(top_up) | {"flags": list(top_up.flags), "stripe_parameters": Jsonb(top_up.stripe_parameters)}
