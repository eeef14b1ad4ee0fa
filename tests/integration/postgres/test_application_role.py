"""What the database refuses to the application's login: to change or remove ledger entries, or create credits."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from server.postgres.pool import APPLICATION_ROLE

LOGIN, PASSWORD = "pulsa_login", "a password of the test"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
PAID, OPEN, CANCELED = uuid4(), uuid4(), uuid4()
TABLES = ("accounts", "ledger_entries", "top_ups", "schema_migrations")

FORBIDDEN = {
    "to change an entry": "UPDATE ledger_entries SET credits = 9",
    "to change one while adding it": """
        INSERT INTO ledger_entries SELECT * FROM ledger_entries
        ON CONFLICT (organization_id, sequence) DO UPDATE SET credits = 9
    """,
    "to remove entries": "DELETE FROM ledger_entries",
    "to remove all entries": "TRUNCATE ledger_entries",
    "to remove them with another table": "TRUNCATE accounts, ledger_entries CASCADE",
    "to remove an account": "DELETE FROM accounts",
    "to remove what was bought": "DELETE FROM top_ups",
    "to change a MAC": "UPDATE ledger_macs SET mac = ''",
    "to remove MACs": "DELETE FROM ledger_macs",
    "to remove the MACs of entries": "DELETE FROM entry_macs",
    "to rewrite the history of settings": "UPDATE organization_settings SET updated_by = 'eve'",
    "to remove the history of settings": "DELETE FROM organization_settings",
    "to remove a day's MAC": "DELETE FROM ledger_days",
    "to change a signed day": "UPDATE ledger_heads SET head = ''",
    "to change what was signed": "UPDATE ledger_roots SET root = ''",
    "to change the usage of removed OTPs": "UPDATE daily_usage SET credits = 0",
    "to make any partition": "SELECT create_partition('otps', '2001-01-01')",
    "to drop any partition": "DROP TABLE otps_default",
    "to drop the ledger": "DROP TABLE ledger_entries",
    "to own the ledger": "ALTER TABLE ledger_entries OWNER TO CURRENT_USER",
    "to give itself the right": "GRANT UPDATE ON ledger_entries TO CURRENT_USER; UPDATE ledger_entries SET credits = 9",
    "to drop a constraint": "ALTER TABLE ledger_entries DROP CONSTRAINT kind_gives_the_sign_of_credits",
    "to drop a domain's constraint": "ALTER DOMAIN credit_count DROP CONSTRAINT credits_are_never_negative",
    "to drop what keeps one top-up open": "DROP INDEX one_unfinished_top_up_per_organization",
    "to change a column": "ALTER TABLE ledger_entries ALTER COLUMN credits TYPE integer",
    "to switch triggers off": "ALTER TABLE ledger_entries DISABLE TRIGGER ALL",
    "to switch checks off for the session": "SET session_replication_role = replica",
    "to put a trigger on the ledger": """
        CREATE TRIGGER mine BEFORE INSERT ON ledger_entries EXECUTE FUNCTION suppress_redundant_updates_trigger()
    """,
    "to put a rule on the ledger": "CREATE RULE mine AS ON INSERT TO ledger_entries DO INSTEAD NOTHING",
    "to make tables": "CREATE TABLE public.mine (id integer)",
    "to become the owner": "SET ROLE postgres",
    "to log in as the owner": "SET SESSION AUTHORIZATION postgres",
    "to become a superuser": "ALTER ROLE CURRENT_USER SUPERUSER",
    "to run programs": "COPY ledger_entries FROM PROGRAM 'true'",
    "to rewrite the schema's history": "DELETE FROM schema_migrations",
}
ENTRY = (
    "INSERT INTO ledger_entries (organization_id, sequence, kind, credits, balance_after, reference_id, create_time)"
)
SECOND_TOP_UP = f"""
    INSERT INTO top_ups (
        organization_id, top_up_id, status, credits, currency_code, unit_price, total, created_by, create_time,
        stripe_parameters, attempt_time, next_check_time
    )
    SELECT organization_id, gen_random_uuid(), 'CREATING', credits, currency_code, unit_price, total, created_by,
        create_time, stripe_parameters, attempt_time, next_check_time
    FROM top_ups
    WHERE top_up_id = '{PAID}'
"""  # noqa: S608 - a constant of this file
INVALID_WRITES = {
    "a negative balance": (
        "UPDATE accounts SET available_credits = -1",
        "credits_are_never_negative",
    ),
    "a top-up that is credited twice": (
        f"{ENTRY} VALUES ('acme', 2, 'TOP_UP', 1000, 2000, '{PAID}', now())",
        "one_entry_per_kind_and_reference",
    ),
    "two entries of one sequence": (
        f"{ENTRY} VALUES ('acme', 1, 'ADJUSTMENT', 1000, 2000, gen_random_uuid(), now())",
        "ledger_entries_pkey",
    ),
    "an entry that leaves a negative balance": (
        f"{ENTRY} VALUES ('acme', 2, 'SEND', -1001, -1, gen_random_uuid(), now())",
        "credits_are_never_negative",
    ),
    "an entry before the first": (
        f"{ENTRY} VALUES ('acme', 0, 'SEND', -3, 997, gen_random_uuid(), now())",
        "sequence_begins_at_1",
    ),
    "an entry of another kind": (
        f"{ENTRY} VALUES ('acme', 2, 'GIFT', 3, 1003, gen_random_uuid(), now())",
        "kind_is_known",
    ),
    "an entry that changes nothing": (
        f"{ENTRY} VALUES ('acme', 2, 'ADJUSTMENT', 0, 1000, gen_random_uuid(), now())",
        "an_entry_changes_the_balance",
    ),
    "a send that adds credits": (
        f"{ENTRY} VALUES ('acme', 2, 'SEND', 3, 1003, gen_random_uuid(), now())",
        "kind_gives_the_sign_of_credits",
    ),
    "a top-up that takes credits": (
        f"{ENTRY} VALUES ('acme', 2, 'TOP_UP', -3, 997, gen_random_uuid(), now())",
        "kind_gives_the_sign_of_credits",
    ),
    "a refund that takes credits": (
        f"{ENTRY} VALUES ('acme', 2, 'REFUND', -3, 997, gen_random_uuid(), now())",
        "kind_gives_the_sign_of_credits",
    ),
    "two unfinished top-ups": (
        SECOND_TOP_UP,
        "one_unfinished_top_up_per_organization",
    ),
    "a canceled top-up that is opened beside another": (
        f"UPDATE top_ups SET status = 'OPEN', cancel_time = NULL WHERE top_up_id = '{CANCELED}'",  # noqa: S608 - a constant of this file
        "one_unfinished_top_up_per_organization",
    ),
    "two top-ups of one invoice": (
        f"UPDATE top_ups SET stripe_invoice_id = 'in_PAID' WHERE top_up_id = '{OPEN}'",  # noqa: S608 - a constant of this file
        "one_top_up_per_invoice",
    ),
}


@pytest.fixture
def login(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection of a login created as README says: a member of the application's role, with no other rights."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        _fill(owner)
        name, role = sql.Identifier(LOGIN), sql.Identifier(APPLICATION_ROLE)
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(name, sql.Literal(PASSWORD), role))
        try:
            with psycopg.connect(database_url, user=LOGIN, password=PASSWORD) as connection:
                yield connection
        finally:
            owner.execute(sql.SQL("DROP ROLE {}").format(name))


def _fill(owner: psycopg.Connection) -> None:
    """Insert an organization with a paid, an open and a canceled top-up."""
    account = ["acme", 1000, 1, 0, NOW, NOW]
    owner.execute(
        "INSERT INTO accounts (organization_id, available_credits, last_sequence, low_balance_threshold,"
        " window_start_time, create_time) VALUES (%s, %s, %s, %s, %s, %s)",
        account,
    )
    owner.execute(f"{ENTRY} VALUES ('acme', 1, 'TOP_UP', 1000, 1000, %s, %s)", [PAID, NOW])
    for top_up_id, status, paid, canceled in (
        (PAID, "PAID", NOW, None),
        (OPEN, "OPEN", None, None),
        (CANCELED, "CANCELED", None, NOW),
    ):
        owner.execute(
            "INSERT INTO top_ups (organization_id, top_up_id, status, credits,"
            " currency_code, unit_price, total, created_by, create_time, stripe_parameters, attempt_time,"
            " next_check_time, stripe_invoice_id, paid_time, cancel_time)"
            " VALUES ('acme', %s, %s, 1000, 'IDR', 150, 150000, 'ann', %s, %s, %s, %s, %s, %s, %s)",
            [top_up_id, status, NOW, Jsonb({}), NOW, NOW, f"in_{status}", paid, canceled],
        )


def rows_of_all_tables(login: psycopg.Connection) -> dict[str, list[tuple[object, ...]]]:
    return {
        name: login.execute(sql.SQL("TABLE {} ORDER BY 1, 2").format(sql.Identifier(name))).fetchall()
        for name in TABLES
    }


def refusal_of(login: psycopg.Connection, statement: str) -> errors.Error:
    """The error with which PostgreSQL refuses the statement, which must change nothing."""
    before = rows_of_all_tables(login)
    with pytest.raises(psycopg.DatabaseError) as refused, login.transaction():
        login.execute(statement.encode())
    assert rows_of_all_tables(login) == before
    return refused.value


@pytest.mark.plain_postgres  # tests/cluster/roles.py tries it on each node
def test_the_application_lacks_the_right_to_rewrite_the_ledger_or_the_schema(login: psycopg.Connection) -> None:
    refusals = {what: refusal_of(login, statement) for what, statement in FORBIDDEN.items()}

    others = {what: refusal for what, refusal in refusals.items() if refusal.sqlstate != "42501"}
    assert others == {}


@pytest.mark.plain_postgres  # Citus tells no constraint_name
def test_constraints_refuse_invalid_balances_entries_and_top_ups(login: psycopg.Connection) -> None:
    for what, (statement, constraint) in INVALID_WRITES.items():
        refusal = refusal_of(login, statement)
        assert (what, refusal.diag.constraint_name) == (what, constraint)


def test_the_application_can_do_its_work(login: psycopg.Connection) -> None:
    with login.transaction(force_rollback=True):
        login.execute("UPDATE accounts SET available_credits = 997, last_sequence = 2")
        login.execute(f"{ENTRY} VALUES ('acme', 2, 'SEND', -3, 997, gen_random_uuid(), now())")
        login.execute("DELETE FROM deliveries")
