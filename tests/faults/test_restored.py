"""A restore from a base backup and archived WAL to an earlier time, and the command that follows it."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import aiohttp
import psycopg
from pulsa.credit.v1.top_up_pb2 import TOP_UP_STATUS_PAID

from server.ids import new_id
from server.postgres import embedded
from server.postgres.migrate import migrate
from tests.callers import reason_of
from tests.faults.process_deployment import ProcessDeployment, deployed_processes, start_sidecar
from tests.faults.processes import Process
from tests.waiting import until

FAST = {"fsync": "off"}
MESSAGE_ID = re.compile(r"^Message-ID: (<.+>)\r$", re.MULTILINE)


class ArchivedDatabase:
    """A PostgreSQL that archives its WAL, and its base backup."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "archive"
        self.archive.mkdir()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Run it during the block; yields its URL."""
        archiving = {"archive_mode": "on", "archive_command": f"cp %p {self.archive}/%f"}
        with embedded.start(self.folder / "first", settings=FAST | archiving) as server:
            migrate(server.url)
            yield server.url

    def back_up(self, url: str) -> None:
        """Make a base backup, while it runs."""
        first, second = self.folder / "first", self.folder / "second"
        second.mkdir()
        program, options = embedded._program("pg_basebackup"), ["--checkpoint=fast", "--wal-method=none", "--no-sync"]
        command = [str(program), f"--dbname={url}", f"--pgdata={second / 'data'}", *options]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - of the embedded PostgreSQL
        shutil.copy(first / "password", second)
        owner = (first / "data").stat()
        for path in (second / "data", *(second / "data").rglob("*")):  # root makes the backup, and does not run it
            os.chown(path, owner.st_uid, owner.st_gid)

    @contextmanager
    def restored(self, time: datetime) -> Iterator[str]:
        """Restore the backup to this time, and run it during the block; yields its URL."""
        (self.folder / "second" / "data" / "recovery.signal").touch()
        recovery = {
            "restore_command": f"cp {self.archive}/%f %p",
            "recovery_target_time": time.isoformat(),
            "recovery_target_action": "promote",
        }
        with embedded.start(self.folder / "second", settings=FAST | recovery) as server:
            yield server.url


def is_writable(url: str) -> bool:
    """Whether the recovery has ended."""
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)


def read_time(url: str) -> datetime:
    """The database's time."""
    with psycopg.connect(url) as connection:
        ((time,),) = connection.execute("SELECT clock_timestamp()").fetchall()
    return cast("datetime", time)


async def run(deployment: ProcessDeployment, command: str) -> tuple[int, str]:
    """The exit code and the output of a command of `python -m server`."""
    process = Process(command, deployment.settings, output=deployment.folder / "command.log")
    return await process.wait_for_exit(), process.output


async def send(deployment: ProcessDeployment, request_id: object) -> Any:
    """Send a code to an address of the request's own."""
    return await deployment.send(email=f"{request_id}@mail.example", request_id=str(request_id))


async def pay(deployment: ProcessDeployment, top_up: Any) -> None:
    """Pay on the hosted invoice page, and wait until the credits are there."""
    async with aiohttp.ClientSession() as browser, browser.post(f"{top_up.hosted_invoice_url}/pay") as page:
        assert page.status == 200

    async def is_paid() -> bool:
        [found] = (await deployment.call("ListTopUps", top_up.organization_id)).top_ups
        return bool(found.status == TOP_UP_STATUS_PAID)

    await until(is_paid)


async def test_after_a_restore_paid_top_ups_are_back_and_lost_requests_are_not_charged_again(tmp_path: Path) -> None:
    database, log = ArchivedDatabase(tmp_path), tmp_path / "relay.log"
    kept, lost, random, ordered = [new_id(), new_id()], [new_id(), new_id(), new_id()], uuid4(), new_id()
    async with AsyncExitStack() as stack:
        with database.running() as url:
            pulsa = await stack.enter_async_context(deployed_processes(url, tmp_path))
            await start_sidecar(pulsa)
            database.back_up(url)
            await pulsa.grant(100)
            unpaid = await pulsa.order()
            answers = [await send(pulsa, request_id) for request_id in kept]
            restore_time = await asyncio.to_thread(read_time, url)
            for request_id in (*lost, random):
                await send(pulsa, request_id)
            await pay(pulsa, unpaid)
            await pay(pulsa, lost_top_up := await pulsa.order("beta", request_id=str(ordered)))
            await pulsa.wait_for_empty_outbox()
            for process in pulsa.running.values():
                await process.kill()
        log.write_text("\n".join(MESSAGE_ID.findall(mail.content.decode())[0] for mail in pulsa.relay.mails))

        with database.restored(restore_time) as url:
            await until(lambda: is_writable(url))
            pulsa.settings["PULSA_DATABASE_URL"] = url
            exit_code, told = await run(pulsa, f"restored --to {restore_time.isoformat()} --email {log}")
            await pulsa.start("serve")
            await pulsa.channel.channel_ready()

            assert exit_code == 0, told
            assert "1 top-ups restored" in told
            assert "unknown organization: 4 lost EMAIL, 4 credits" in told
            assert [await reason_of(send(pulsa, request_id)) for request_id in lost] == ["REQUEST_ID_EXPIRED"] * 3
            assert [(await send(pulsa, each)).otp.otp_id for each in kept] == [each.otp.otp_id for each in answers]
            assert await pulsa.balance() == 100 + unpaid.credits - len(kept)
            assert await reason_of(send(pulsa, random)) == ""  # a random request_id cannot tell its time
            assert await reason_of(send(pulsa, new_id())) == ""
            assert (await pulsa.order("beta", request_id=str(ordered))).top_up_id == lost_top_up.top_up_id
            assert await pulsa.balance("beta") == lost_top_up.credits
            assert "every ledger holds" in await pulsa.audit()
