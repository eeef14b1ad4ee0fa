"""The environment of the benchmarks: a PostgreSQL as durable as in production, and the servers, each a process."""

import os
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psycopg
from psycopg import conninfo

from server.api.auth import ANY_ORGANIZATION, mint
from server.api.permissions import ALL_PERMISSIONS
from server.cli.token import development_key
from server.postgres import embedded
from server.postgres.migrate import migrate

ROOT = Path(__file__).parents[2]
SPREAD = 10_000
KEY_ID = "bench"
KEY = bytes(range(32))
POSTGRES = {
    # As in production: nothing is lost at a crash, and memory and log are sized for the load.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
}
FILLING = {
    # While tables are filled nothing needs to survive a crash. Measurements use another start of PostgreSQL.
    "fsync": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "512MB",
    "max_wal_size": "32GB",
    "checkpoint_timeout": "1h",
    "maintenance_work_mem": "1GB",
    "max_parallel_maintenance_workers": "2",
    "autovacuum": "off",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that accepts calls."""

    pid: int
    port: int


@dataclass(frozen=True)
class BenchmarkEnvironment:
    """A running PostgreSQL, and what its servers need."""

    folder: Path
    url: str

    def database_url(self, database: str) -> str:
        """Its address as the schema's owner."""
        return conninfo.make_conninfo(self.url, dbname=database)

    @cached_property
    def token(self) -> str:
        """The token of a trusted internal service."""
        key = development_key(self.folder / "keys").private_key()
        return mint(
            key,
            subject="bench",
            organization_id=ANY_ORGANIZATION,
            permissions=sorted(ALL_PERMISSIONS),
            lifetime_seconds=3600,
        )

    @contextmanager
    def server(self, kind: str, database: str, *, root: Path = ROOT, **settings: str) -> Iterator[Server]:
        """Run a server of tests.bench.serve during the block; `settings` are environment variables."""
        with (self.folder / f"{kind}.log").open("a") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "tests.bench.serve", kind],
                env=os.environ | self.settings(database) | settings,
                cwd=root,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(int(settings.get("PULSA_WORKERS", "1")))]
            if not all(lines):
                raise RuntimeError(f"the {kind} server did not start: {Path(log.name).read_text()[-2000:]}")
            yield Server(process.pid, int(lines[0]))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def settings(self, database: str) -> Mapping[str, str]:
        """Every feature and limit on; the limits are too high to be reached."""
        key = b64encode(KEY).decode()
        return {
            "PULSA_ENVIRONMENT": "bench",
            "PULSA_LISTEN": "127.0.0.1:0",
            "PULSA_LAME_DUCK_SECONDS": "0",
            "PULSA_DATABASE_URL": self.database_url(database),
            "PULSA_TOKEN_KEYS": str(development_key(self.folder / "keys").public_key_file),
            "PULSA_SECRET_KEYS": f"{KEY_ID}:{key}",
            "PULSA_SECRET_DIGEST_KEYS": f"{KEY_ID}:{key}",
            "PULSA_LIMIT_SENDS_PER_ORGANIZATION_PER_MINUTE": "100000000",
            "PULSA_LIMIT_UNVERIFIED_CREDITS_PER_COUNTRY": "1000000000",
            "PULSA_STRIPE_API_KEY": "sk_test_bench",
            "PULSA_STRIPE_WEBHOOK_SECRETS": "whsec_bench",
            "PULSA_CHANNEL_EMAIL": "console",
            "PULSA_CHANNEL_WHATSAPP": "console",
            "PULSA_CHANNEL_SMS": "console",
            # The large tables hold destinations beyond their retention; erasing them is not measured.
            "PULSA_DELIVERY_DESTINATION_DAYS": "90",
        }


@contextmanager
def benchmark_environment(folder: Path, settings: Mapping[str, str] = POSTGRES) -> Iterator[BenchmarkEnvironment]:
    """Run PostgreSQL in the folder during the block."""
    with embedded.start(folder / "postgres", settings=settings) as postgres:
        yield BenchmarkEnvironment(folder, postgres.url)


def create_database(environment: BenchmarkEnvironment, name: str) -> None:
    """A migrated database whose organizations have credits: hot, plain, bare, and SPREAD others."""
    with psycopg.connect(environment.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    migrate(environment.database_url(name))
    fund_accounts(environment.database_url(name))


def fund_accounts(database_url: str) -> None:
    """Insert accounts with credits into a migrated database: hot, plain, bare, and SPREAD others."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO accounts (organization_id, available_credits, last_sequence, low_balance_threshold,"
            " window_start_time, create_time)"
            " SELECT organization_id, 1000000000, 1, 100, now(), now()"
            " FROM (SELECT unnest(ARRAY['hot', 'plain', 'bare']) UNION ALL"
            " SELECT 'spread-' || number FROM generate_series(0, %s) AS number) AS organization (organization_id)",
            [SPREAD - 1],
        )
        connection.execute(
            "INSERT INTO ledger_entries"
            " (organization_id, sequence, kind, credits, balance_after, reference_id, reason, created_by, create_time)"
            " SELECT organization_id, 1, 'ADJUSTMENT', available_credits, available_credits, uuidv7(), 'load', 'bench',"
            " now() FROM accounts"
        )
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE accounts, ledger_entries")
