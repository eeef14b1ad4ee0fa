"""The rows of automatic top-ups: the statements, which join the caller's transaction.

Lock order: the account first, then the top-up, then the row of automatic top-ups.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from psycopg.types.json import Jsonb

from server.credits.accounts import insert_notices
from server.credits.balances import AUTOMATIC_STATE
from server.credits.top_ups.automatic import (
    SETTINGS,
    AutomaticTopUp,
    AutomaticTopUpState,
    fits_cap,
    follow,
    month_of,
    refuse_by_cap,
)
from server.credits.top_ups.state_machine import TopUp, TopUpTerms
from server.ids import new_id
from server.postgres.columns import TableColumns, texts
from server.postgres.pool import Connection
from server.postgres.queries import load_queries

_COLUMNS: Final = TableColumns(AutomaticTopUp)
SQL = load_queries(
    __file__,
    automatic=_COLUMNS,
    assignments=", ".join(f"{name} = %({name})s" for name in _COLUMNS.names if name != "organization_id"),
    automatic_state=AUTOMATIC_STATE,
)
_FIELDS: Final = tuple(each.name for each in fields(AutomaticTopUp))


async def read_automatic(connection: Connection, organization_id: str) -> AutomaticTopUp | None:
    """The organization's row, or None."""
    return await _fetch_one(connection, SQL.read_automatic, organization_id)


async def lock_automatic(connection: Connection, organization_id: str) -> AutomaticTopUp | None:
    """The organization's row, or None, locked until this transaction ends."""
    return await _fetch_one(connection, SQL.lock_automatic, organization_id)


async def lock_or_create_automatic(connection: Connection, organization_id: str, *, now: datetime) -> AutomaticTopUp:
    """As `lock_automatic`; creates the row first if there is none."""
    await connection.execute(SQL.create_automatic, {"organization_id": organization_id, "now": now})
    row = await lock_automatic(connection, organization_id)
    if row is None:
        raise LookupError("a row that was just created is there")
    return row


async def write_automatic(
    connection: Connection, *, before: AutomaticTopUp, after: AutomaticTopUp, now: datetime
) -> None:
    """Store a row that was changed under its lock; when the server switched it off, with a notice."""
    if after == before:
        return
    lists = {"methods_to_detach": list(after.methods_to_detach)}
    documents = {name: Jsonb(dict(getattr(after, name))) for name in ("billing_address", "tax_id")}
    await connection.execute(SQL.write_automatic, asdict(after) | lists | documents | {"now": now})
    if after.off_reason and not before.off_reason:
        details = {"off_reason": after.off_reason, "failed_charges": after.failed_charges}
        await notify(connection, after, "AUTOMATIC_TOP_UP_OFF", f"{now:%Y-%m-%dT%H:%M:%S.%f}", details, now=now)


async def notify(
    connection: Connection,
    row: AutomaticTopUp,
    kind: str,
    reference: str,
    details: Mapping[str, Any],
    *,
    now: datetime,
) -> None:
    """Store a notice of this kind for each billing contact, once for a reference."""
    await insert_notices(connection, kind, {row.organization_id: (reference, details)}, now=now)


async def insert_consent(connection: Connection, row: AutomaticTopUp, *, total: Decimal, now: datetime) -> None:
    """Keep the consent that a row has just got, with what it is about; `total` is what its credits cost, before tax."""
    terms = {name: getattr(row, name) for name in SETTINGS}
    terms |= {"payment_method_id": row.payment_method_id, "total": str(total)}
    await connection.execute(
        SQL.insert_consent,
        {
            "organization_id": row.organization_id,
            "consent_id": new_id(now),
            "consent_text": row.consent_text,
            "given_by": row.consent_given_by,
            "terms": Jsonb(terms),
            "now": now,
        },
    )


async def read_consented_total(connection: Connection, organization_id: str) -> Decimal:
    """What the last consent lets a top-up cost at most, before tax; 0 without one."""
    values = {"organization_id": organization_id}
    row = await (await connection.execute(SQL.read_consented_total, values)).fetchone()
    return row[0] if row else Decimal(0)


async def refuse_over_cap(connection: Connection, row: AutomaticTopUp, credits: int, *, now: datetime) -> bool:
    """Store and tell that the month's cap has no room for these credits; returns False, and does nothing, if it has."""
    month_credits = await read_month_credits(connection, row.organization_id, now=now)
    if fits_cap(row, credits, month_credits=month_credits):
        return False
    details = {"monthly_credit_cap": row.monthly_credit_cap, "month_credits": month_credits}
    month = f"{month_of(now):%Y-%m} {row.monthly_credit_cap}"
    await notify(connection, row, "AUTOMATIC_TOP_UP_CAP_REACHED", month, details, now=now)
    await write_automatic(connection, before=row, after=refuse_by_cap(row, now=now), now=now)
    return True


async def read_month_credits(connection: Connection, organization_id: str, *, now: datetime) -> int:
    """The credits that automatic top-ups have bought in the calendar month (UTC)."""
    values = {"organization_id": organization_id, "month": month_of(now)}
    ((credits,),) = await (await connection.execute(SQL.read_month_credits, values)).fetchall()
    return int(credits)


async def read_state(connection: Connection, organization_id: str) -> AutomaticTopUpState:
    """The state of the organization's automatic top-ups."""
    row = await (await connection.execute(SQL.read_state, {"organization_ids": texts([organization_id])})).fetchone()
    return AutomaticTopUpState(row[0]) if row else AutomaticTopUpState.OFF


async def follow_top_up(
    connection: Connection, before: TopUp, after: TopUp, terms: TopUpTerms, *, now: datetime
) -> None:
    """Let the row follow a change of an automatic top-up's status or flags, in the same transaction."""
    row = await lock_automatic(connection, after.organization_id)
    if row is not None:
        await write_automatic(connection, before=row, after=follow(row, before, after, terms, now=now), now=now)


async def _fetch_one(connection: Connection, query: str, organization_id: str) -> AutomaticTopUp | None:
    row = await (await connection.execute(query, {"organization_id": organization_id})).fetchone()
    if row is None:
        return None
    values = dict(zip(_FIELDS, row, strict=True))
    return AutomaticTopUp(**(values | {"methods_to_detach": tuple(values["methods_to_detach"])}))
