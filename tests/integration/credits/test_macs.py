"""MACs of the ledger: with the key, the audit tells what the schema's owner edited, however carefully."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from datetime import date, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from server.__main__ import main
from server.credits.audit import AuditReport, audit_all, audit_organization, audit_snapshot, make_daily_macs
from server.credits.ledger import DIGEST, AuditKeys
from server.postgres.pool import Connection, Pool, acquire
from tests.integration.credits.ledgers import NOW, fill, fund, send

OLD, NEW = b"o" * 32, b"n" * 32
KEYS = AuditKeys({"old": OLD})
DAY = timedelta(days=1)
MAKE_DELIVERIES_FIT = """
    UPDATE deliveries SET balance_after = entry.balance_after, credits = -entry.credits
    FROM ledger_entries AS entry
    WHERE entry.organization_id = deliveries.organization_id AND entry.kind = 'SEND'
        AND entry.reference_id = deliveries.delivery_id;
"""
MAKE_BALANCES_FIT = f"""
    UPDATE ledger_entries SET balance_after = fitting.balance_after
    FROM (
        SELECT organization_id, sequence,
            sum(credits) OVER (PARTITION BY organization_id ORDER BY sequence) AS balance_after
        FROM ledger_entries
    ) AS fitting
    WHERE fitting.organization_id = ledger_entries.organization_id AND fitting.sequence = ledger_entries.sequence;
    UPDATE accounts SET available_credits = ledger.credits, last_sequence = ledger.last_sequence
    FROM (
        SELECT organization_id, sum(credits) AS credits, max(sequence) AS last_sequence
        FROM ledger_entries
        GROUP BY organization_id
    ) AS ledger
    WHERE ledger.organization_id = accounts.organization_id;
    {MAKE_DELIVERIES_FIT}
"""  # noqa: S608 - constants of this file
"""What a forger does next, so that everything fits again."""
DELETE_NEWEST_SEND = """
    DELETE FROM deliveries WHERE credits = 1;
    DELETE FROM otps WHERE otp_id IN (SELECT reference_id FROM ledger_entries WHERE credits = -1);
    DELETE FROM ledger_entries WHERE credits = -1;
    UPDATE ledger_entries SET sequence = 5 WHERE organization_id = 'acme' AND sequence = 6;
"""
FORGED_TOP_UP = """
    CREATE TEMPORARY TABLE forged AS SELECT * FROM top_ups;
    UPDATE forged SET top_up_id = gen_random_uuid(), stripe_invoice_id = 'in_2';
    INSERT INTO top_ups SELECT * FROM forged;
    DROP TABLE forged;
    INSERT INTO ledger_entries (organization_id, sequence, kind, credits, balance_after, reference_id, create_time)
    SELECT organization_id, 7, 'TOP_UP', credits, 0, top_up_id, now() FROM top_ups WHERE stripe_invoice_id = 'in_2';
"""
FORGED_ADJUSTMENT = """
    INSERT INTO ledger_entries
    SELECT 'acme', 7, 'ADJUSTMENT', 500, 0, gen_random_uuid(), 'goodwill', 'ann', now();
"""
EDITS: Mapping[str, tuple[str, set[str]]] = {
    "a price": ("UPDATE ledger_entries SET credits = -2 WHERE credits = -1", {"edited_history", "forged_entry"}),
    "an adjustment's amount": (
        "UPDATE ledger_entries SET credits = 2000 WHERE kind = 'ADJUSTMENT' AND organization_id = 'other'",
        {"edited_history", "forged_entry"},
    ),
    "an adjustment's author": (
        "UPDATE ledger_entries SET created_by = 'bob' WHERE kind = 'ADJUSTMENT' AND organization_id = 'other'",
        {"edited_history", "forged_entry"},
    ),
    "the time of a send": (
        "UPDATE ledger_entries SET create_time = '2020-01-01Z' WHERE credits = -1",
        {"edited_history"},
    ),
    "a send that is removed with everything": (DELETE_NEWEST_SEND, {"edited_history", "forged_entry"}),
    "an organization that is removed with its MACs": (
        """
        DELETE FROM accounts WHERE organization_id = 'other';
        DELETE FROM ledger_entries WHERE organization_id = 'other';
        DELETE FROM ledger_macs WHERE organization_id = 'other';
        DELETE FROM entry_macs WHERE organization_id = 'other';
        """,
        {"edited_days"},
    ),
    "an entry that is moved to another organization": (
        """
        UPDATE ledger_entries SET organization_id = 'other', sequence = 2
        WHERE organization_id = 'acme' AND sequence = 6;
        UPDATE top_ups SET organization_id = 'other';
        """,
        {"edited_history", "forged_entry"},
    ),
    "a forged adjustment": (FORGED_ADJUSTMENT, {"forged_entry"}),
    "a forged adjustment with another one's MAC": (
        f"""
        {FORGED_ADJUSTMENT}
        INSERT INTO entry_macs SELECT 'acme', 7, key_id, mac FROM entry_macs WHERE organization_id = 'other';
        """,  # noqa: S608 - a constant of this file
        {"forged_entry"},
    ),
    "a top-up that is credited twice": (FORGED_TOP_UP, {"forged_entry"}),
    "a day without its MAC": ("DELETE FROM ledger_days", {"edited_days"}),
    "a MAC that is removed": ("DELETE FROM ledger_macs WHERE organization_id = 'other'", {"edited_days"}),
    "a MAC that is replaced": (
        "UPDATE ledger_macs SET mac = sha256(mac) WHERE organization_id = 'other'",
        {"edited_days", "edited_history"},
    ),
    "the MAC of a day": ("UPDATE ledger_days SET mac = sha256(mac)", {"edited_days"}),
}
MARKS = {"an entry that is moved to another organization": pytest.mark.plain_postgres}  # Citus refuses it


@pytest.fixture
async def ledgers(pool: Pool) -> Pool:
    """The ledgers of two organizations, with the MACs of their day."""
    await fill(pool, KEYS)
    await make_daily_macs(pool, KEYS, now=NOW + DAY)
    return pool


@pytest.fixture
async def edited(ledgers: Pool) -> AsyncIterator[Connection]:
    """A transaction of the schema's owner on those ledgers, for edits that are rolled back at the end."""
    async with await psycopg.AsyncConnection[tuple[Any, ...]].connect(str(ledgers.conninfo)) as connection:
        yield connection
        await connection.rollback()


async def audit_within(connection: Connection, keys: AuditKeys | None) -> AuditReport:
    return await audit_snapshot(connection, None, None, verify_time=NOW, audit_keys=keys)


def rules(report: AuditReport) -> set[str]:
    return {finding.rule for finding in report.findings}


async def test_macs_of_ledgers_that_hold_are_right(ledgers: Pool) -> None:
    report = await audit_all(ledgers, audit_keys=KEYS)
    assert (report.holds, report.days) == (True, (NOW.date(), NOW.date()))
    assert (await audit_organization(ledgers, "acme", audit_keys=KEYS)).holds


@pytest.mark.parametrize(
    ("edit", "found"), [pytest.param(*edit, id=name, marks=MARKS.get(name, ())) for name, edit in EDITS.items()]
)
async def test_edits_that_fit_are_found_by_macs_alone(edited: Connection, edit: str, found: set[str]) -> None:
    await edited.execute(edit.encode())
    await edited.execute(MAKE_BALANCES_FIT.encode())
    assert rules(await audit_within(edited, None)) == set()
    assert rules(await audit_within(edited, KEYS)) == found


async def test_an_adjustment_that_is_removed_on_its_day_is_found(edited: Connection, ledgers: Pool) -> None:
    await fund(ledgers, "other", audit_keys=KEYS, now=NOW + DAY)
    await edited.execute("DELETE FROM ledger_entries WHERE organization_id = 'other' AND sequence = 2")
    await edited.execute(MAKE_BALANCES_FIT.encode())
    assert rules(await audit_within(edited, None)) == set()
    assert rules(await audit_within(edited, KEYS)) == {"forged_entry"}


async def test_the_audit_of_one_organization_finds_its_edits(edited: Connection) -> None:
    await edited.execute(FORGED_ADJUSTMENT.encode())
    await edited.execute(MAKE_BALANCES_FIT.encode())
    await edited.execute("UPDATE ledger_entries SET create_time = now() WHERE organization_id = 'acme'")
    acme = await audit_snapshot(edited, "acme", None, verify_time=NOW, audit_keys=KEYS)
    other = await audit_snapshot(edited, "other", None, verify_time=NOW, audit_keys=KEYS)
    assert (rules(acme), other.holds) == ({"edited_history", "forged_entry"}, True)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        pytest.param("organization_id", "'another'", marks=pytest.mark.plain_postgres),  # Citus refuses it
        ("sequence", "sequence + 1"),
        ("kind", "'REFUND'"),
        ("credits", "credits + 1"),
        ("balance_after", "balance_after + 1"),
        ("reference_id", "'00000000-0000-7000-8000-000000000000'"),
        ("reason", "reason || ' '"),
        ("created_by", "created_by || ' '"),
        pytest.param("create_time", "create_time + interval '1 microsecond'", marks=pytest.mark.plain_postgres),  # too
    ],
)
async def test_a_mac_is_of_every_column(edited: Connection, column: str, value: str) -> None:
    columns = await edited.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'ledger_entries'::regclass"
                                   " AND attnum > 0 AND NOT attisdropped")  # fmt: skip
    assert {name for (name,) in await columns.fetchall()} == set(LEDGER_COLUMNS)
    assert column in LEDGER_COLUMNS
    edit = sql.SQL("UPDATE ledger_entries SET {} = {} WHERE organization_id = 'acme' AND sequence = 6")
    await edited.execute(edit.format(sql.Identifier(column), sql.SQL(value)))
    assert "edited_history" in rules(await audit_within(edited, KEYS))


LEDGER_COLUMNS = (
    "organization_id", "sequence", "kind", "credits", "balance_after", "reference_id", "reason", "created_by",
    "create_time",
)  # fmt: skip


async def test_entries_that_look_alike_have_different_digests(edited: Connection) -> None:
    await edited.execute("DELETE FROM ledger_entries")
    digests = set()
    texts = [("", ""), ("a", ""), ("", "a"), ('a", "', ""), ('a"', ', "'), ("ADJUSTMENT", "")]
    for reason, created_by in texts:
        await edited.execute(
            "INSERT INTO ledger_entries VALUES ('acme', 1, 'ADJUSTMENT', 5, 5,"
            " '00000000-0000-0000-0000-000000000001', %s, %s, '2026-11-22')",
            [reason, created_by],
        )
        query = f"SELECT {DIGEST} FROM ledger_entries"  # noqa: S608 - a constant
        digests |= set(await (await edited.execute(query.encode())).fetchall())
        await edited.execute("DELETE FROM ledger_entries")
    assert len(digests) == len(texts)


async def test_a_day_gets_its_macs_once(ledgers: Pool) -> None:
    again = await make_daily_macs(ledgers, KEYS, now=NOW + DAY)
    await send(ledgers, "acme", now=NOW + DAY)
    same_day = await make_daily_macs(ledgers, KEYS, now=NOW + DAY)
    next_day = await make_daily_macs(ledgers, KEYS, now=NOW + 2 * DAY)
    empty_day = await make_daily_macs(ledgers, KEYS, now=NOW + 4 * DAY)
    assert (again, same_day, next_day, empty_day) == (0, 0, 1, 0)
    report = await audit_all(ledgers, audit_keys=KEYS)
    assert (report.holds, report.days) == (True, (NOW.date(), date(2026, 11, 25)))


async def test_replicas_that_work_at_once_make_each_mac_once(pool: Pool) -> None:
    for number in range(3):
        await fund(pool, f"organization-{number}", audit_keys=KEYS)
    await asyncio.gather(*[make_daily_macs(pool, KEYS, now=NOW + DAY) for _ in range(4)])
    async with acquire(pool) as connection:
        assert await (await connection.execute("SELECT count(*) FROM ledger_macs")).fetchall() == [(3,)]
    assert (await audit_all(pool, audit_keys=KEYS)).holds


async def test_an_interrupted_day_is_continued(pool: Pool, database_url: str) -> None:
    await fill(pool, KEYS)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as owner:
        await owner.execute("ALTER TABLE ledger_macs RENAME TO hidden")
        with pytest.raises(psycopg.errors.UndefinedTable):
            await make_daily_macs(pool, KEYS, now=NOW + DAY)
        await owner.execute("ALTER TABLE hidden RENAME TO ledger_macs")
    assert (await audit_all(pool, audit_keys=KEYS)).days is None
    await send(pool, "acme", now=NOW + DAY)
    assert await make_daily_macs(pool, KEYS, now=NOW + 2 * DAY) == 2  # of the interrupted day
    assert await make_daily_macs(pool, KEYS, now=NOW + 2 * DAY) == 1
    report = await audit_all(pool, audit_keys=KEYS)
    assert (report.holds, report.days) == (True, (NOW.date(), (NOW + DAY).date()))


async def test_an_entry_of_a_slow_clock_belongs_to_the_next_days_mac(ledgers: Pool) -> None:
    await send(ledgers, "acme", now=NOW + DAY)
    await send(ledgers, "acme", now=NOW)  # after the MACs of its day
    await send(ledgers, "acme", now=NOW + 2 * DAY)
    await send(ledgers, "acme", now=NOW + DAY)  # after an entry of a later day
    assert await make_daily_macs(ledgers, KEYS, now=NOW + 2 * DAY) == 1
    assert await make_daily_macs(ledgers, KEYS, now=NOW + 3 * DAY) == 1
    assert (await audit_all(ledgers, audit_keys=KEYS)).holds
    async with acquire(ledgers) as connection:
        rows = await connection.execute("SELECT last_sequence FROM ledger_macs WHERE organization_id = 'acme'")
        assert sorted(await rows.fetchall()) == [(6,), (8,), (10,)]


async def test_a_day_with_many_entries_has_several_macs(edited: Connection, ledgers: Pool) -> None:
    await edited.execute(
        "INSERT INTO ledger_entries SELECT 'other', number, 'ADJUSTMENT', 1, 999 + number, gen_random_uuid(), 'r', 'a',"
        " '2026-11-23 12:00Z' FROM generate_series(2, 30001) AS number"
    )
    await edited.execute("UPDATE accounts SET available_credits = 31000, last_sequence = 30001"
                         " WHERE organization_id = 'other'")  # fmt: skip
    await edited.commit()
    assert await make_daily_macs(ledgers, KEYS, now=NOW + 2 * DAY) == 3
    assert rules(await audit_all(ledgers, audit_keys=KEYS)) == {"forged_entry"}  # written past the server
    await edited.execute("UPDATE ledger_entries SET reason = 'edited' WHERE sequence = 15000")
    assert rules(await audit_within(edited, KEYS)) == {"forged_entry", "edited_history"}


async def test_the_first_macs_take_the_history_as_it_is(pool: Pool) -> None:
    await fill(pool)  # without a key
    assert rules(await audit_all(pool, audit_keys=KEYS)) == {"forged_entry"}
    await make_daily_macs(pool, KEYS, now=NOW)
    assert (await audit_all(pool, audit_keys=KEYS)).holds
    await make_daily_macs(pool, KEYS, now=NOW + DAY)
    await fund(pool, "acme", now=NOW + DAY)
    await make_daily_macs(pool, KEYS, now=NOW + 2 * DAY)
    report = await audit_all(pool, audit_keys=KEYS)
    assert [(finding.rule, finding.description) for finding in report.findings] == [
        ("forged_entry", "entry 7: it has no MAC")
    ]


async def test_a_new_key_makes_macs_while_the_old_one_still_checks(ledgers: Pool) -> None:
    both, new = AuditKeys({"old": OLD, "new": NEW}), AuditKeys({"new": NEW})
    await fund(ledgers, "acme", audit_keys=both, now=NOW + DAY)
    await make_daily_macs(ledgers, both, now=NOW + 2 * DAY)
    assert (await audit_all(ledgers, audit_keys=both)).holds
    without_old = await audit_all(ledgers, audit_keys=new)
    assert {finding.description.split(": ")[1] for finding in without_old.findings} == {
        "its key old is not in PULSA_AUDIT_KEYS"
    }
    other = await audit_all(ledgers, audit_keys=AuditKeys({"old": NEW}))
    assert {finding.description.split(": ")[1] for finding in other.findings} == {"its MAC is wrong",
        "its key new is not in PULSA_AUDIT_KEYS"}  # fmt: skip


async def test_a_stolen_old_key_cannot_rewrite_what_is_older_than_a_new_ones_macs(
    ledgers: Pool, edited: Connection
) -> None:
    both = AuditKeys({"old": OLD, "new": NEW})
    await send(ledgers, "acme", now=NOW + DAY)
    await make_daily_macs(ledgers, both, now=NOW + 2 * DAY)
    for table in ("ledger_macs", "ledger_days"):
        await edited.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table} WHERE key_id = 'new'".encode())  # noqa: S608
        await edited.execute(f"DELETE FROM {table}".encode())  # noqa: S608
    await edited.execute(
        "UPDATE ledger_entries"
        " SET create_time = (create_time AT TIME ZONE 'UTC' - interval '1 hour') AT TIME ZONE 'UTC' WHERE credits = -1"
    )
    await edited.commit()
    await make_daily_macs(ledgers, KEYS, now=NOW + DAY)  # by the thief, with the old key
    for table in ("ledger_macs", "ledger_days"):
        await edited.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}".encode())  # noqa: S608
    report = await audit_within(edited, both)
    assert [(finding.rule, finding.description.split(",")[0]) for finding in report.findings] == [
        ("edited_history", "the entries until 7"),
        ("edited_days", "the MACs of 2026-11-23: its MAC is wrong"),
    ]


async def test_macs_are_right_while_credits_change(pool: Pool) -> None:
    async def spend(organization_id: str) -> None:
        await fund(pool, organization_id, audit_keys=KEYS)
        for number in range(20):
            await send(pool, organization_id, refunded=True, now=NOW + number * DAY / 4)

    spending = [asyncio.create_task(spend(f"organization-{number}")) for number in range(2)]
    reports, day = [], 0
    while not all(task.done() for task in spending):
        day += 1
        await make_daily_macs(pool, KEYS, now=NOW + day * DAY)
        reports.append(await audit_all(pool, audit_keys=KEYS))
    await asyncio.gather(*spending)
    await make_daily_macs(pool, KEYS, now=NOW + (day + 30) * DAY)
    reports.append(await audit_all(pool, audit_keys=KEYS))
    assert [report.findings for report in reports if not report.holds] == []


async def test_the_command_says_which_days_have_macs(
    ledgers: Pool, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PULSA_DATABASE_URL", database_url)
    monkeypatch.setenv("PULSA_DATABASE_MIGRATE", "false")

    without_key = await asyncio.to_thread(main, ["audit"])
    monkeypatch.setenv("PULSA_AUDIT_KEYS", f"old:{b64encode(OLD).decode()}")
    holds = await asyncio.to_thread(main, ["audit"])
    await fund(ledgers, "acme")
    forged = await asyncio.to_thread(main, ["audit"])

    assert (without_key, holds, forged) == (0, 0, 1)
    assert capsys.readouterr().out.splitlines() == [
        "2 organizations, 7 ledger entries: every ledger holds; no MACs were checked, as PULSA_AUDIT_KEYS is unset",
        "2 organizations, 7 ledger entries: every ledger holds; MACs from 2026-11-22 to 2026-11-22",
        "acme: forged_entry: entry 7: it has no MAC",
        "2 organizations, 8 ledger entries: 1 findings; MACs from 2026-11-22 to 2026-11-22",
    ]
