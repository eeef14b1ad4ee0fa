"""Opens the database for every command; the commands `migrate`, `audit`, `rotate`, `suspend`, `resume` and `erase`."""

import argparse
import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from typing import Final

import psycopg
import structlog
from pydantic import SecretStr

from server.composition import timeouts_of
from server.credits import accounts
from server.credits.audit import AuditReport, audit_all
from server.credits.pricing import load_pricing
from server.environment import SettingsError, load_settings, naming_setting
from server.errors import InvalidDestination, RetryLater
from server.ids import ORGANIZATION_ID
from server.keyrings import open_audit_keys, open_crypto, open_signing_keys
from server.logs import configure_logging
from server.otps.admission import DAY
from server.otps.crypto import Crypto
from server.otps.key_rotation import COLUMNS, Progress, find_digest_uses, find_needed_keys, reseal
from server.otps.operator import area_policy
from server.otps.recipients import RawDestination, RecipientResolver
from server.otps.retention import erase_destination
from server.postgres import embedded
from server.postgres.conninfo import with_timeouts
from server.postgres.migrate import READ_ONLY, SchemaError, first_line, look, migrate
from server.postgres.pool import BoundedConnection, Pool, open_pool
from server.providers.provider import Channel
from server.settings import Settings

_log = structlog.get_logger(__name__)

_PROGRESS_ROWS: Final = 50_000
_POOLER_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 1.0
LONGEST_TTL: Final = timedelta(minutes=10)
"""The longest ttl that a caller may ask for."""
_NEIGHBOUR_SECONDS: Final = 1.0


class SharedSession(Exception):
    """PostgreSQL is reached through a pooler that gives the transactions of one client to different sessions.

    Pulsa needs its own: its role and planner settings, its prepared statements and the lock of a migration belong to a
    session. In a pooler's transaction mode another client's transaction would run with them, and ours without.
    """

    def __str__(self) -> str:
        return "leads to a pooler in transaction or statement mode, which shares sessions: use its session mode"


@contextmanager
def database(settings: Settings) -> Iterator[str]:
    """Yield the URL of the configured PostgreSQL, or of an embedded one that runs while the block does: for a server.

    Applies missing migrations to an embedded one, and with PULSA_DATABASE_MIGRATE to any. Raises SettingsError when
    that fails, when the schema lacks migrations, and for a pooler that shares sessions. A database that is away or
    takes no writes is only logged: the server waits for it.
    """
    with _opened(settings, settings.database.url) as url:
        if settings.database.url is None or settings.database.migrate:
            _migrate(settings, url)
        _check(url)
        yield url


@contextmanager
def existing_database(settings: Settings, *, writes: bool) -> Iterator[str]:
    """As `database`, for a command: never migrates, and a database must be there, with this version's schema.

    A standby will do unless the command `writes`. Raises SettingsError, also when the database goes away in the block.
    """
    if settings.database.url is None and not (settings.data / "postgres" / "data").exists():
        raise SettingsError(f"PULSA_DATABASE_URL: is needed, as there is no embedded PostgreSQL in {settings.data}")
    configure_logging(level=settings.log.level, style="console")
    with _opened(settings, settings.database.url) as url, _naming("PULSA_DATABASE_URL"):
        found = asyncio.run(look(url))
        asyncio.run(check_own_sessions(url))
        found.require(writes=writes)
        yield url


async def refuse_old_schema(url: str) -> None:
    """Raise SettingsError when the schema lacks migrations, as soon as the database can be reached; never return.

    For a server that began before its database.
    """
    with _naming("PULSA_DATABASE_URL"):
        while True:
            try:
                (await look(url)).require(writes=False, may_be_newer=True)
                await asyncio.Event().wait()
            except psycopg.OperationalError:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def migrate_database() -> None:
    """`migrate`: apply missing migrations and log each."""
    settings = load_settings(os.environ)
    configure_logging(level="info", style="console")
    with _opened(settings, settings.database.owner_url or settings.database.url) as url:
        _migrate(settings, url)
    print("the schema is up to date")


def print_public_keys() -> int:
    """`public-keys`: print the public keys of receipts; return 1 when there are none."""
    keys = open_signing_keys(load_settings(os.environ))
    if keys is None:
        print("PULSA_AUDIT_SIGNING_KEYS is unset", file=sys.stderr)
        return 1
    for key_id, pem in keys.public_keys().items():
        print(f"{key_id}\n{pem}")
    return 0


def audit() -> int:
    """`audit`: replay every ledger and print inconsistencies; return 0 when there are none, 1 otherwise."""
    settings = load_settings(os.environ)
    with existing_database(settings, writes=False) as url:
        report = asyncio.run(_audit(settings, url))
    for finding in report.findings:
        print(f"{finding.organization_id}: {finding.rule}: {finding.description}")
    verdict = "every ledger holds" if report.holds else f"{len(report.findings)} findings"
    if settings.audit.keys is None:
        macs = "no MACs were checked, as PULSA_AUDIT_KEYS is unset"
    else:
        macs = f"MACs from {report.days[0]} to {report.days[1]}" if report.days else "no day has MACs yet"
    print(f"{report.organization_count} organizations, {report.entry_count} ledger entries: {verdict}; {macs}")
    return 0 if report.holds else 1


def rotate() -> int:
    """`rotate`: encrypt destinations with the newest key and print the progress, and what still needs older keys.

    Returns 0 when no older key is needed any more, 1 otherwise.
    """
    settings = load_settings(os.environ)
    crypto = open_crypto(settings)
    with existing_database(settings, writes=True) as url:
        needed, uses, now = asyncio.run(_rotate(settings, url, crypto))
    count_for = _digests_count_for(settings)
    digests_needed = {key_id: time + count_for for key_id, time in uses.items() if time + count_for > now}
    for line in (*key_report(crypto, needed), *digest_key_report(crypto, digests_needed)):
        print(line)
    return 0 if set(needed) <= {crypto.current_key_id} and set(digests_needed) <= {crypto.digest_key_ids[-1]} else 1


def key_report(crypto: Crypto, needed: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Yield a line for each key of the key ring, and for each missing key that is needed."""
    for key_id in dict.fromkeys([*crypto.key_ids, *needed]):
        uses = ", ".join(f"{count} {kind}" for kind, count in needed.get(key_id, {}).items())
        if key_id == crypto.current_key_id:
            yield f"{key_id}: the current key"
        elif not uses:
            yield f"{key_id}: no longer needed"
        elif key_id in crypto.key_ids:
            yield f"{key_id}: still needed by {uses}; run this again in 10 minutes"
        else:
            yield f"{key_id}: needed by {uses}, but missing from PULSA_SECRET_KEYS"


def digest_key_report(crypto: Crypto, needed: Mapping[str, datetime]) -> Iterator[str]:
    """Yield a line for each key of the digest ring, and for each missing key that is needed until a time."""
    for key_id in dict.fromkeys([*crypto.digest_key_ids, *needed]):
        line = f"digest key {key_id}"
        if key_id == crypto.digest_key_ids[-1]:
            yield f"{line}: the current key"
        elif key_id not in needed:
            yield f"{line}: no longer needed"
        elif key_id in crypto.digest_key_ids:
            yield f"{line}: still needed until {needed[key_id]:%Y-%m-%d %H:%M} UTC; run this again then"
        else:
            yield f"{line}: needed until {needed[key_id]:%Y-%m-%d %H:%M} UTC, but missing from PULSA_SECRET_DIGEST_KEYS"


def _digests_count_for(settings: Settings) -> timedelta:
    """How long after a send its digests count: in limits, and until its OTP has expired and guesses at it are old."""
    limit = settings.limit
    hours = max(limit.guess_window_hours, limit.unverified_window_hours, DAY / timedelta(hours=1))
    return timedelta(hours=hours) + LONGEST_TTL


def add_organization_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument of commands about one organization."""
    parser.add_argument("organization", type=_organization_id, help="the organization_id")


def add_suspend_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `suspend`."""
    add_organization_arguments(parser)
    parser.add_argument("--reason", required=True, help="the reason, which only operators see")


def add_erase_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `erase`."""
    add_organization_arguments(parser)
    parser.add_argument("channel", choices=[channel.field for channel in Channel], help="what the destination is")


def suspend(arguments: argparse.Namespace) -> None:
    """`suspend`: refuse an organization's sends and purchases, and print since when."""
    settings = load_settings(os.environ)
    with naming_setting("PULSA_PRICING"):
        low_balance_threshold = load_pricing(settings.pricing).low_balance_threshold

    async def run(url: str) -> accounts.Suspension:
        async with _pool(settings, url) as pool:
            return await accounts.suspend(
                pool,
                arguments.organization,
                reason=arguments.reason,
                created_by="command",
                low_balance_threshold=low_balance_threshold,
                now=pool.now(),
            )

    with existing_database(settings, writes=True) as url:
        suspension = asyncio.run(run(url))
    print(
        f"{arguments.organization}: suspended since {suspension.suspend_time:%Y-%m-%d %H:%M} UTC: {suspension.reason}"
    )


def resume(arguments: argparse.Namespace) -> None:
    """`resume`: end an organization's suspension."""
    settings = load_settings(os.environ)

    async def run(url: str) -> accounts.Suspension | None:
        async with _pool(settings, url) as pool:
            return await accounts.resume(pool, arguments.organization)

    with existing_database(settings, writes=True) as url:
        suspension = asyncio.run(run(url))
    print(f"{arguments.organization}: {'no longer' if suspension else 'was not'} suspended")


def erase(arguments: argparse.Namespace) -> int:
    """`erase`: erase what is stored of a destination; returns 2 for one that is not valid.

    It is read from standard input, because lists of processes and histories of shells show arguments.
    """
    settings = load_settings(os.environ)
    crypto = open_crypto(settings)
    given = RawDestination(Channel(arguments.channel.upper()), sys.stdin.readline().strip(), arguments.channel)
    try:
        destination = RecipientResolver(crypto, {}, area_policy(settings)).parse(given).normalized
    except InvalidDestination as error:
        print(error, file=sys.stderr)
        return 2

    async def run(url: str) -> int:
        async with _pool(settings, url) as pool:
            return await erase_destination(pool, crypto, arguments.organization, destination)

    with existing_database(settings, writes=True) as url:
        count = asyncio.run(run(url))
    print(f"erased from {count} deliveries; run this again in 10 minutes, when what was in work has ended")
    return 0


def run_postgres() -> None:
    """`postgres`: run the embedded PostgreSQL of the data folder alone, until Ctrl-C or SIGTERM.

    Its URL is in postgres.url.
    """
    settings = load_settings(os.environ)
    url_file = settings.data / "postgres.url"
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job of a shell inherits SIGINT as ignored
        signal.signal(number, signal.default_int_handler)
    with embedded.start(settings.data / "postgres") as postgres:
        url_file.touch(mode=0o600)
        url_file.write_text(postgres.url)
        try:
            print(f"PostgreSQL is running; its URL is in {url_file}. Ctrl-C stops it.", flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
        finally:
            url_file.unlink(missing_ok=True)


@asynccontextmanager
async def _pool(settings: Settings, url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(url, size=2, timeouts=timeouts_of(settings.database))
    try:
        yield pool
    finally:
        await pool.close()


def _organization_id(text: str) -> str:
    if not re.fullmatch(ORGANIZATION_ID, text):
        raise argparse.ArgumentTypeError("not an organization_id")
    return text


async def check_own_sessions(url: str) -> None:
    """Raise SharedSession when transactions of one connection run in different sessions.

    A connection runs two transactions; between them another connection takes the session that the pooler would lend
    next. When that one has to wait because the pooler's sessions are all taken, the first connection keeps its own only
    if the pooler never took it back. Returns when PostgreSQL cannot be reached.
    """
    try:
        async with asyncio.timeout(_POOLER_SECONDS):
            client = await BoundedConnection.connect(url, autocommit=True)
    except (psycopg.Error, TimeoutError):
        return
    try:
        await _compare_sessions(client, url)
    finally:
        await client.close()


async def _compare_sessions(client: BoundedConnection, url: str) -> None:
    try:
        async with asyncio.timeout(_POOLER_SECONDS):
            session = await _session_of(client)
            if session == client.pgconn.backend_pid:  # no pooler: it would have given a number of its own
                return
            neighbour = await BoundedConnection.connect(url)
    except (psycopg.Error, TimeoutError):
        return
    taking = asyncio.create_task(_session_of(neighbour))  # begins a transaction, and with it keeps its session
    try:
        await asyncio.wait([taking], timeout=_NEIGHBOUR_SECONDS)
        if taking.done():
            taking.result()
        async with asyncio.timeout(_POOLER_SECONDS):
            if await _session_of(client) != session:
                raise SharedSession
    except (psycopg.Error, TimeoutError):  # the neighbour has the only session, or transactions are refused
        raise SharedSession from None
    finally:
        taking.cancel()
        await asyncio.gather(taking, neighbour.close(), return_exceptions=True)


async def _session_of(connection: BoundedConnection) -> int:
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None  # noqa: S101 - the query returns one row
    return int(row[0])


@contextmanager
def _opened(settings: Settings, url: SecretStr | None) -> Iterator[str]:
    """Yield the URL with its time-outs, or without one that of the embedded PostgreSQL."""
    if url is not None:
        yield with_timeouts(url.get_secret_value(), timeouts_of(settings.database))
        return
    with embedded.start(settings.data / "postgres") as postgres:
        yield postgres.url


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn what an operator can mend into a SettingsError of one line that names the setting of the URL."""
    try:
        yield
    except RetryLater as error:
        raise SettingsError(f"{name}: {first_line(error.__cause__ or error)}") from error
    except (SchemaError, SharedSession, psycopg.OperationalError, psycopg.errors.InsufficientPrivilege) as error:
        raise SettingsError(f"{name}: {first_line(error)}") from error


def _check(url: str) -> None:
    with _naming("PULSA_DATABASE_URL"):
        try:
            found = asyncio.run(look(url))
        except psycopg.OperationalError as error:
            _log.warning("waiting for the database", reason=first_line(error))
            return
        asyncio.run(check_own_sessions(url))
        found.require(writes=False, may_be_newer=True)
    if found.is_newer:
        _log.warning("the schema is newer than the server", migration=found.version, newest=found.newest)
    if not found.takes_writes:
        _log.warning("waiting for the database", reason=READ_ONLY)


def _migrate(settings: Settings, url: str) -> None:
    """Migrate with the owner's URL, if there is one, otherwise with `url`."""
    name, owner = "PULSA_DATABASE_URL", settings.database.owner_url
    if owner is not None:
        name, url = "PULSA_DATABASE_OWNER_URL", with_timeouts(owner.get_secret_value(), timeouts_of(settings.database))
    with _naming(name):
        asyncio.run(look(url, role=None))  # fails in time where a migration, which may take long, would wait
        asyncio.run(check_own_sessions(url))
        migrate(url, shards=settings.database.shards)


async def _audit(settings: Settings, url: str) -> AuditReport:
    pool = await open_pool(url, size=2, timeouts=timeouts_of(settings.database), read_only=True)
    try:
        return await audit_all(
            pool,
            deliveries_kept=timedelta(days=settings.delivery.retention_days),
            audit_keys=open_audit_keys(settings),
        )
    finally:
        await pool.close()


async def _rotate(
    settings: Settings, url: str, crypto: Crypto
) -> tuple[Mapping[str, Mapping[str, int]], Mapping[str, datetime], datetime]:
    async with _pool(settings, url) as pool:
        for column in COLUMNS:
            progress, printed = Progress(), 0
            async for progress in reseal(pool, crypto, column):
                if progress.checked >= printed + _PROGRESS_ROWS:
                    printed = progress.checked
                    print(_line(column.name, progress))
            print(_line(column.name, progress))
        now = pool.now()
        return await find_needed_keys(pool, now=now), await find_digest_uses(pool), now


def _line(name: str, progress: Progress) -> str:
    line = f"{name}: {progress.checked} checked, {progress.resealed} re-encrypted"
    return f"{line}, {progress.unreadable} that no key decrypts" if progress.unreadable else line
