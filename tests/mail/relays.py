"""`make test-mail`: what real mail servers answer, and that their limits open no breaker. Not part of `make test`."""

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from server.clock import utc_now
from server.providers.guard import BreakerSettings, Guard, GuardSettings
from server.providers.provider import Channel, Message, Outcome, OutcomeKind, Subject
from server.providers.smtp import Smtp, SmtpSettings
from server.providers.templates import load_templates
from tests.integration.api.certificate_authority import CertificateAuthority
from tests.waiting import until

UNPACKED = Path(__file__).parents[2] / "build" / "mail"
SERVERS = ("postfix", "exim", "opensmtpd")
WITH_SMTPUTF8 = {"postfix", "exim"}
MAILS = 500
AUTHORITY = CertificateAuthority()
WITH_TLS = ("postfix", "exim")
"""OpenSMTPD 6.8, which Debian 12 has, ends each handshake: https://github.com/OpenSMTPD/OpenSMTPD/issues/1171"""


@asynccontextmanager
async def relaying(server: str) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """Run the server; yields its port and process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    state = readable_folder()
    private_key, certificate = AUTHORITY.issue("relay.example")
    (state / "key.pem").touch(0o600)
    (state / "key.pem").write_bytes(private_key)
    (state / "certificate.pem").write_bytes(certificate)
    command = ("unshare", "--mount", Path(__file__).with_name("serve.sh"), server, str(port), UNPACKED / server, state)
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True)

    async def listens() -> bool:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            greeting = await reader.readline()
            writer.close()
            return greeting.startswith(b"220")
        assert process.returncode is None, "the mail server ended; it needs root and mount namespaces"
        return False

    try:
        await until(listens)
        yield port, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await process.wait()
        shutil.rmtree(state)


def readable_folder() -> Path:
    """A new folder that the server's users may read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    return folder


def sending(port: int, **changes: Any) -> Guard:
    """One outcome about the account or the relay opens the breaker."""
    settings = SmtpSettings("127.0.0.1", "no-reply@pulsa.example", port=port, **{"security": "none"} | changes)
    limits = GuardSettings(wait_seconds=60, breaker=BreakerSettings(failures_to_open=1))
    return Guard(Smtp(settings, load_templates(None), clock=utc_now), limits, clock=utc_now)


def message(address: str) -> Message:
    end = utc_now() + timedelta(minutes=5)
    return Message(uuid4(), Channel.EMAIL, address, "123456", "login", "", end, end, "", "acme/0")


@pytest.mark.parametrize("server", SERVERS)
async def test_each_answer_is_about_the_mailbox_or_the_mail(server: str) -> None:
    async with relaying(server) as (port, _):
        smtp = sending(port)
        outcomes = {
            name: await smtp.deliver(message(f"{name}@mail.example"))
            for name in ("unknown", "grey", "full", "large", "jürgen", "fine")
        }
        outcomes["denied"] = await smtp.deliver(message("bob@denied.example"))
        await smtp.close()

    rejected = OutcomeKind.REJECTED_DESTINATION
    expected = {
        "unknown": (rejected, "smtp_550"),
        "grey": (OutcomeKind.NOT_SENT, "smtp_451"),
        "full": (OutcomeKind.NOT_SENT, "smtp_452"),
        "large": (rejected, "smtp_552"),
        "jürgen": (OutcomeKind.ACCEPTED, "") if server in WITH_SMTPUTF8 else (rejected, "smtp_not_ascii"),
        "fine": (OutcomeKind.ACCEPTED, ""),
        "denied": (rejected, "smtp_554" if server == "postfix" else "smtp_550"),
    }
    assert {name: (one.kind, one.failure_reason) for name, one in outcomes.items()} == expected
    failed = [one for one in outcomes.values() if one.kind is not OutcomeKind.ACCEPTED]
    assert {one.about for one in failed} == {Subject.DESTINATION}


@pytest.mark.parametrize("server", WITH_TLS)
async def test_a_login_over_tls_is_checked_and_so_is_the_certificate(server: str, tmp_path: Path) -> None:
    trusted = tmp_path / "authority.pem"
    trusted.write_bytes(AUTHORITY.certificate)
    tls = {"security": "starttls", "ca_file": trusted}
    login = tls | {"username": "pulsa", "password": "right"}
    async with relaying(server) as (port, _):
        outcomes = {
            name: await deliver_once(port, **settings)
            for name, settings in {
                "login": login,
                "no login": tls,
                "wrong password": login | {"password": "wrong"},
                "unknown authority": login | {"ca_file": None},
            }.items()
        }

    assert {name: (one.kind, one.failure_reason) for name, one in outcomes.items()} == {
        "login": (OutcomeKind.ACCEPTED, ""),
        "no login": {
            "postfix": (OutcomeKind.REJECTED_DESTINATION, "smtp_554"),
            "exim": (OutcomeKind.REJECTED_CONFIGURATION, "smtp_530"),
        }[server],
        "wrong password": (OutcomeKind.REJECTED_CONFIGURATION, "smtp_535"),
        "unknown authority": (OutcomeKind.REJECTED_CONFIGURATION, "tls_refused"),
    }
    assert outcomes["wrong password"].about is Subject.ACCOUNT


async def deliver_once(port: int, **changes: Any) -> Outcome:
    """Send to a mailbox that takes mail only from who has logged in."""
    smtp = sending(port, **changes)
    outcome = await smtp.deliver(message("member@mail.example"))
    await smtp.close()
    return outcome


@pytest.mark.parametrize("server", SERVERS)
async def test_limits_of_connections_and_sessions_delay_no_mail(server: str) -> None:
    """Postfix and Exim take ten connections; Exim ends a session after ten mails."""
    async with relaying(server) as (port, _):
        smtp = sending(port)
        outcomes = await asyncio.gather(*(smtp.deliver(message("bob@mail.example")) for _ in range(MAILS)))
        await smtp.close()

    assert {(one.kind, one.failure_reason) for one in outcomes} == {(OutcomeKind.ACCEPTED, "")}


@pytest.mark.parametrize("server", SERVERS)
async def test_a_shutdown_in_the_middle_leaves_no_mail_without_an_outcome(server: str) -> None:
    async with relaying(server) as (port, process):
        smtp = sending(port)
        assert (await smtp.deliver(message("bob@mail.example"))).kind is OutcomeKind.ACCEPTED
        deliveries = [asyncio.create_task(smtp.deliver(message("bob@mail.example"))) for _ in range(MAILS)]
        await asyncio.wait(deliveries, return_when=asyncio.FIRST_COMPLETED)
        os.killpg(process.pid, signal.SIGTERM)
        outcomes: list[Outcome] = await asyncio.gather(*deliveries)
        await smtp.close()

    may_be = {OutcomeKind.ACCEPTED, OutcomeKind.NOT_SENT, OutcomeKind.UNKNOWN}
    assert {one.kind for one in outcomes} <= may_be
