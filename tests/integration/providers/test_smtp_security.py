"""TLS and logins against aiosmtpd, an independent SMTP server."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
from aiosmtpd.handlers import Sink
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from server.clock import utc_now
from server.providers.provider import Channel, Message, OutcomeKind
from server.providers.smtp import Smtp, SmtpSettings
from server.providers.templates import Templates

MakeMessage = Callable[..., Message]
Security = Literal["starttls", "tls", "none"]


LOGINS: list[str] = []


def login(_server: SMTP, _session: Session, _envelope: Envelope, mechanism: str, given: object) -> AuthResult:
    LOGINS.append(mechanism)
    return AuthResult(success=isinstance(given, LoginPassword) and given.password == b"right", handled=False)


@asynccontextmanager
async def serving(security: Security, certificate: tuple[Path, Path], *, auth: bool = False) -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    def protocol() -> SMTP:
        return SMTP(
            Sink(),
            hostname="relay.example",
            tls_context=context if security == "starttls" else None,
            require_starttls=security == "starttls",
            authenticator=login if auth else None,
            auth_required=auth,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=context if security == "tls" else None)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def sending(settings: SmtpSettings, templates: Templates) -> AsyncIterator[Smtp]:
    smtp = Smtp(settings, templates, clock=utc_now)
    yield smtp
    await smtp.close()


@pytest.fixture
def message(make_message: MakeMessage) -> Message:
    return make_message(Channel.EMAIL)


@pytest.mark.parametrize("security", ["starttls", "tls", "none"])
async def test_a_relay_with_a_trusted_certificate_gets_the_mail(
    security: Security, self_signed: tuple[Path, Path], templates: Templates, message: Message
) -> None:
    async with serving(security, self_signed) as port:
        settings = SmtpSettings(
            "127.0.0.1", "a@pulsa.example", port=port, security=security, ca_file=self_signed[0], timeout_seconds=5
        )
        async with sending(settings, templates) as smtp:
            kinds = [(await smtp.deliver(message)).kind for _ in range(2)]

    assert kinds == [OutcomeKind.ACCEPTED, OutcomeKind.ACCEPTED]


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_a_relay_with_an_untrusted_certificate_gets_nothing(
    security: Security, self_signed: tuple[Path, Path], templates: Templates, message: Message
) -> None:
    async with serving(security, self_signed) as port:
        settings = SmtpSettings("127.0.0.1", "a@pulsa.example", port=port, security=security, timeout_seconds=5)
        async with sending(settings, templates) as smtp:
            outcome = await smtp.deliver(message)

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.REJECTED_CONFIGURATION, "tls_refused")


async def test_a_relay_without_starttls_gets_nothing_unencrypted(
    self_signed: tuple[Path, Path], templates: Templates, message: Message
) -> None:
    async with serving("none", self_signed) as port:
        settings = SmtpSettings("127.0.0.1", "a@pulsa.example", port=port, timeout_seconds=5)
        async with sending(settings, templates) as smtp:
            outcome = await smtp.deliver(message)

    assert (outcome.kind, outcome.failure_reason) == (OutcomeKind.REJECTED_CONFIGURATION, "smtp_not_supported")


@pytest.mark.parametrize(
    ("username", "password", "kind", "reason"),
    [
        ("pulsa", "right", OutcomeKind.ACCEPTED, ""),
        ("pulsa", "wrong", OutcomeKind.REJECTED_CONFIGURATION, "smtp_535"),
        ("", "", OutcomeKind.REJECTED_CONFIGURATION, "smtp_530"),
    ],
)
async def test_a_refused_login_is_a_wrong_configuration(
    self_signed: tuple[Path, Path],
    templates: Templates,
    message: Message,
    *,
    username: str,
    password: str,
    kind: OutcomeKind,
    reason: str,
) -> None:
    LOGINS.clear()
    async with serving("starttls", self_signed, auth=True) as port:
        settings = SmtpSettings(
            "127.0.0.1", "a@pulsa.example", "", port, "starttls", username, password, self_signed[0], 5
        )
        async with sending(settings, templates) as smtp:
            outcome = await smtp.deliver(message)

    assert (outcome.kind, outcome.failure_reason) == (kind, reason)
    assert len(LOGINS) == bool(username)  # a wrong password is not tried by a second mechanism
