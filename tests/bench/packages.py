"""Debits by ledgers of the package index, by the virtual environment build/peers, which has nothing of the server.

`build/peers/bin/python tests/bench/packages.py PACKAGE prepare` makes its tables and ACCOUNTS accounts in the database
of DATABASE_URL; `… PACKAGE ACCOUNTS SESSIONS SECONDS` debits so many of them by so many processes, each with a session
of its own, and prints the debits per second.
"""

# ruff: noqa: PLC0415 - each package is imported for itself

import os
import random
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.queues import Queue
from uuid import uuid4

ACCOUNTS = 1000
_CREDITS = 1_000_000_000
_WARMING_SECONDS = 0.5
_LATE_SECONDS = 30.0

Debit = Callable[[int, int], None]
"""Debits the account with a number from 1, of so many. A transfer goes to another of them: it needs two."""


def _connection() -> dict[str, str]:
    from psycopg import conninfo

    return {name: str(value) for name, value in conninfo.conninfo_to_dict(os.environ["DATABASE_URL"]).items()}


def _prepare_credit_ledger() -> None:
    """Make the two tables that its statements name; the wheel has no schema. Row security is left out."""
    import psycopg

    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute(
            "CREATE TABLE credit_balance (tenant_id text PRIMARY KEY, credits numeric(18, 4) NOT NULL,"
            " updated_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.execute(
            "CREATE TABLE credit_ledger (id uuid PRIMARY KEY, tenant_id text NOT NULL, delta numeric(18, 4) NOT NULL,"
            " reason text NOT NULL, idempotency_key text, balance_after numeric(18, 4) NOT NULL,"
            " created_at timestamptz NOT NULL DEFAULT now(), UNIQUE (tenant_id, idempotency_key))"
        )
        connection.execute(
            "INSERT INTO credit_balance (tenant_id, credits)"
            " SELECT number::text, %s FROM generate_series(1, %s) AS number",
            [_CREDITS, ACCOUNTS],
        )


def _credit_ledger() -> Debit:
    from credit_ledger import metering  # type: ignore[import-not-found] # it has a virtual environment of its own
    from sqlalchemy import create_engine  # type: ignore[import-not-found]

    engine = create_engine("postgresql+psycopg://", connect_args=_connection(), pool_size=1)

    def debit(account: int, _: int) -> None:
        if not metering.decrement(str(account), 1, idempotency_key=str(uuid4()), engine=engine).ok:
            raise RuntimeError("credit-ledger refused a debit")

    return debit


def _open_django() -> None:
    import django  # type: ignore[import-not-found]
    from django.conf import settings  # type: ignore[import-not-found]

    to = _connection()
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": to["dbname"],
        "USER": to["user"],
        "PASSWORD": to.get("password", ""),
        "HOST": to["host"],
        "PORT": to["port"],
        "CONN_MAX_AGE": None,
    }
    settings.configure(
        DATABASES={"default": database},
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "mptt", "hordak"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()


def _prepare_hordak() -> None:
    _open_django()
    from django.core.management import call_command  # type: ignore[import-not-found]
    from hordak.models import Account  # type: ignore[import-not-found]

    call_command("migrate", verbosity=0)
    for number in range(1, ACCOUNTS + 1):
        Account.objects.create(name=f"account {number}", code=str(number), type="AS", currencies=["EUR"])


def _hordak() -> Debit:
    _open_django()
    from django.db import connections  # type: ignore[import-not-found]
    from hordak.models import Account
    from moneyed import Money  # type: ignore[import-not-found]

    accounts = {int(account.code): account for account in Account.objects.all()}
    connections.close_all()  # each process opens its own
    one = Money(1, "EUR")

    def debit(account: int, count: int) -> None:
        other = 1 + (account + random.randrange(count - 1)) % count  # noqa: S311 - no secret
        accounts[account].transfer_to(accounts[other], one)

    return debit


_PACKAGES = {"credit-ledger": (_prepare_credit_ledger, _credit_ledger), "django-hordak": (_prepare_hordak, _hordak)}


def _count(debit: Debit, accounts: int, seconds: float, rates: "Queue[float]") -> None:
    """Debits per second of one process, after a moment of warming."""
    began, count = time.perf_counter() + _WARMING_SECONDS, 0
    while (now := time.perf_counter()) < began + seconds:
        debit(random.randint(1, accounts), accounts)  # noqa: S311
        count += now >= began
    rates.put(count / (now - began))


def main() -> None:
    """Prepare, or debit and print."""
    package, *rest = sys.argv[1:]
    if rest == ["prepare"]:
        _PACKAGES[package][0]()
        return
    accounts, sessions, seconds = int(rest[0]), int(rest[1]), float(rest[2])
    fork, debit = get_context("fork"), _PACKAGES[package][1]()
    rates: Queue[float] = fork.Queue()
    for _ in range(sessions):
        fork.Process(target=_count, args=(debit, accounts, seconds, rates), daemon=True).start()
    print(sum(rates.get(timeout=seconds + _LATE_SECONDS) for _ in range(sessions)))  # noqa: T201 - for tests.bench.peers


if __name__ == "__main__":
    main()
