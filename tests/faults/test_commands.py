"""Commands that look change nothing and wait for nobody, and each says in one line what an operator has to mend."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
import psycopg
from psycopg.conninfo import make_conninfo

from server.cli.token import development_key
from server.postgres import embedded
from server.postgres.migrate import current_version, load_migrations, migrate
from server.sandbox.stripe import start_stripe_sandbox
from tests.callers import Caller, reason_of
from tests.fault_proxy import Fault, proxy_to
from tests.faults.process_deployment import CHANNEL_OPTIONS, start_process
from tests.faults.processes import Process
from tests.waiting import until

KNOWN = len(load_migrations())
COMMANDS = ("audit", "doctor", "reconcile", "rotate")
URL = "PULSA_DATABASE_URL: "
READ_ONLY = f"{URL}leads to a standby or a read-only database, which takes no writes"
MIGRATE = f"{URL}the schema is at migration {KNOWN - 1} of {KNOWN}: run python -m server migrate"
DATABASE_LINE = re.compile(r"^(?:FAIL|ok) +database: (.*)$", re.MULTILINE)


async def run(commands: Sequence[str], settings: Mapping[str, str], folder: Path) -> dict[str, tuple[int, str]]:
    """Run the commands side by side: each one's exit code, and the line that it prints, or doctor's of the database."""
    processes = {name: Process(name, settings, output=folder / f"{name}.log") for name in commands}
    codes = {name: await process.wait_for_exit() for name, process in processes.items()}
    return {name: (codes[name], _line(process.output)) for name, process in processes.items()}


def _line(output: str) -> str:
    assert "Traceback" not in output
    lines = DATABASE_LINE.findall(output) or [line for line in output.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, output
    return str(lines[0])


def all_refuse(commands: Sequence[str], line: str) -> dict[str, tuple[int, str]]:
    return {name: (1 if name == "doctor" else 2, line) for name in commands}


async def test_no_command_but_migrate_applies_a_missing_migration(
    settings: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    commands = (*COMMANDS, "serve")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE version = %s", [KNOWN])
        assert await run(commands, settings, tmp_path) == all_refuse(commands, MIGRATE)
        assert current_version(connection) == KNOWN - 1


async def test_beside_a_newer_schema_only_servers_go_on(
    settings: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (%s, 'later')", [KNOWN + 1])
    commands = (*COMMANDS, "migrate")
    told = f"{URL}the schema is at migration {KNOWN + 1}, newer than this version of Pulsa, which knows {KNOWN}"
    assert await run(commands, settings, tmp_path) == all_refuse(commands, told)

    server = await start_process("serve", settings, tmp_path)
    await server.kill()
    assert '"the schema is newer than the server"' in server.output


async def test_no_command_waits_for_a_silent_database(
    settings: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    commands = (*COMMANDS, "migrate")
    async with proxy_to(database_url) as (proxy, url):
        proxy.set(Fault.NO_ANSWER)
        seen = await run(commands, settings | {"PULSA_DATABASE_URL": url}, tmp_path)
    assert seen == all_refuse(commands, f"{URL}connection timeout expired")


async def test_a_server_says_that_it_waits_for_its_database_and_serves_when_it_comes(
    settings: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    async with proxy_to(database_url) as (proxy, url):
        proxy.set(Fault.REFUSE)
        settings["PULSA_DATABASE_URL"] = url
        server = await start_process("serve", settings, tmp_path)
        try:
            async with grpc.aio.insecure_channel(settings["PULSA_LISTEN"], options=CHANNEL_OPTIONS) as channel:
                caller = Caller(channel, development_key(tmp_path))
                assert await reason_of(caller.call("GetBalance")) == "DATABASE_UNAVAILABLE"
                proxy.set(Fault.NONE)
                await until(lambda: '"the database was found again"' in server.output)
                await caller.call("GetBalance")
        finally:
            await server.kill()
    assert '"waiting for the database"' in server.output.splitlines()[0]


async def test_a_server_that_began_before_its_database_ends_when_the_schema_turns_out_to_be_old(
    settings: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE version = %s", [KNOWN])
    async with proxy_to(database_url) as (proxy, url):
        proxy.set(Fault.REFUSE)
        server = await start_process("serve", settings | {"PULSA_DATABASE_URL": url}, tmp_path)
        proxy.set(Fault.NONE)
        assert await server.wait_for_exit() == 2
    assert server.output.splitlines()[-1] == MIGRATE


async def test_a_login_without_the_application_s_role_is_refused(
    settings: dict[str, str], postgres: str, database_url: str, tmp_path: Path
) -> None:
    commands = (*COMMANDS, "serve")
    with psycopg.connect(postgres, autocommit=True) as administrator:
        administrator.execute("CREATE ROLE a_stranger LOGIN PASSWORD 'secret'")
        settings["PULSA_DATABASE_URL"] = make_conninfo(database_url, user="a_stranger", password="secret")
        seen = await run(commands, settings, tmp_path)
        migrating = await run(["migrate"], settings, tmp_path)
        administrator.execute("DROP ROLE a_stranger")

    told = f'{URL}permission denied to set role "pulsa_application": grant pulsa_application to a_stranger'
    assert seen == all_refuse(commands, told)
    told = f"{URL}a_stranger may not change the schema, as its owner may: permission denied for schema public"
    assert migrating == all_refuse(["migrate"], told)


async def test_commands_without_a_database_make_none(tmp_path: Path) -> None:
    secrets = {"PULSA_SECRET_KEYS": f"a:{'A' * 43}=", "PULSA_SECRET_DIGEST_KEYS": f"a:{'A' * 43}="}
    seen = await run(COMMANDS, secrets | {"PULSA_DATA": str(tmp_path / "data")}, tmp_path)
    told = f"{URL}is needed, as there is no embedded PostgreSQL in {tmp_path / 'data'}"
    assert seen == all_refuse(COMMANDS, told)
    assert not (tmp_path / "data").exists()


async def test_a_standby_is_audited_and_no_more(settings: dict[str, str], tmp_path: Path) -> None:
    folder, stripe = tmp_path / "standby", await start_stripe_sandbox()
    with embedded.start(folder, settings={"fsync": "off"}) as primary:
        migrate(primary.url)
    (folder / "data" / "standby.signal").touch()
    with embedded.start(folder, settings={"fsync": "off"}) as standby:
        settings |= {"PULSA_DATABASE_URL": standby.url, "PULSA_STRIPE_BASE_URL": stripe.url}
        seen = await run((*COMMANDS, "migrate"), settings, tmp_path)
        server = await start_process("serve", settings, tmp_path)
        await server.kill()
    await stripe.close()

    assert {name: seen.pop(name)[0] for name in ("audit", "reconcile")} == {"audit": 0, "reconcile": 0}
    assert seen == all_refuse(("doctor", "rotate", "migrate"), READ_ONLY)
    assert READ_ONLY.removeprefix(URL) in server.output.splitlines()[0]


async def test_an_owner_who_may_not_create_the_role_hears_who_may(settings: dict[str, str], tmp_path: Path) -> None:
    with embedded.start(tmp_path / "own", settings={"fsync": "off"}) as server:
        with psycopg.connect(server.url, autocommit=True) as administrator:
            administrator.execute("CREATE ROLE an_owner LOGIN PASSWORD 'secret'")
            administrator.execute("CREATE DATABASE of_owner OWNER an_owner")
        owner = {"user": "an_owner", "password": "secret", "dbname": "of_owner"}
        settings["PULSA_DATABASE_URL"] = make_conninfo(server.url, **owner)
        seen = await run(["migrate"], settings, tmp_path)
        with psycopg.connect(server.url, autocommit=True) as administrator:
            administrator.execute("CREATE ROLE pulsa_application NOLOGIN")
        migrated = Process("migrate", settings, output=tmp_path / "again.log")
        assert await migrated.wait_for_exit() == 0, migrated.output

    told = (
        f"{URL}an_owner may not create the role pulsa_application: let an administrator run CREATE ROLE"
        " pulsa_application NOLOGIN, and grant it to the server's login"
    )
    assert seen == all_refuse(["migrate"], told)
