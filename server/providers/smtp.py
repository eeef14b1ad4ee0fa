"""The provider smtp: e-mail through an SMTP relay.

The relay accepts a message by its reply to the final dot. After a failure before that dot nothing was sent; without a
reply to it the outcome is UNKNOWN.
"""

import asyncio
import re
import ssl
from binascii import b2a_qp
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.header import Header
from email.utils import formatdate
from enum import Enum, auto
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import UUID

from aiosmtplib import SMTP, SMTPException, SMTPNotSupported, SMTPResponseException, SMTPServerDisconnected

from server.clock import Clock
from server.ids import new_id
from server.providers.provider import Message, Outcome, OutcomeKind, Subject, Verdict
from server.providers.templates import Rendered, Templates

_GO_AHEAD = 354
_DONE = 250
# 421: the server closes the connection; -1: its reply was not SMTP.
_BROKEN_CODES = frozenset({421, -1})
_IDLE_CHECK_SECONDS = 2.0


class Step(Enum):
    """The step that a delivery has reached."""

    CONNECT = auto()
    """Greeting, EHLO, STARTTLS and AUTH."""
    SENDER = auto()
    RECIPIENT = auto()
    DATA = auto()
    CONTENT = auto()
    """The final dot was sent: without a reply, the server may or may not have accepted the message."""


class Rule(NamedTuple):
    """The verdict of the replies that match a pattern at some steps."""

    steps: frozenset[Step]
    pattern: re.Pattern[str]
    """Of the reply's code and its enhanced status code (RFC 3463), if it has one."""
    verdict: Verdict


_RFC_5321 = "https://www.rfc-editor.org/rfc/rfc5321#section-4.2"
_RFC_3463 = "https://www.rfc-editor.org/rfc/rfc3463#section-3"
_BEFORE = frozenset({Step.CONNECT, Step.SENDER})
_RECIPIENT = frozenset({Step.RECIPIENT})
_MAIL = frozenset({Step.DATA, Step.CONTENT})
_REPLY = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\b")


def _rule(steps: frozenset[Step], pattern: str, kind: OutcomeKind, about: Subject, source: str = _RFC_5321) -> Rule:
    return Rule(steps, re.compile(pattern), Verdict(kind, about, source))


RULES: Sequence[Rule] = (
    # Before RCPT a relay knows only our account.
    _rule(_BEFORE, "4..", OutcomeKind.NOT_SENT, Subject.PROVIDER),
    _rule(_BEFORE, "5..", OutcomeKind.REJECTED_CONFIGURATION, Subject.ACCOUNT),
    _rule(_RECIPIENT | _MAIL, "421", OutcomeKind.NOT_SENT, Subject.SESSION),
    _rule(_RECIPIENT | _MAIL, "4..", OutcomeKind.NOT_SENT, Subject.DESTINATION),
    # Of the sender, 5.1.7 and 5.1.8, and its login. Not of the account: some mailboxes answer so.
    _rule(
        _RECIPIENT | _MAIL,
        r"530|535|5.. 5\.1\.[78]$",
        OutcomeKind.REJECTED_CONFIGURATION,
        Subject.ROUTE,
        _RFC_3463,
    ),
    _rule(_RECIPIENT, "5..", OutcomeKind.REJECTED_DESTINATION, Subject.DESTINATION),
    # 5.7.x is of policy, which here is about the content.
    _rule(_MAIL, r"5.. 5\.7\.", OutcomeKind.REJECTED_CONFIGURATION, Subject.ROUTE, _RFC_3463),
    _rule(_MAIL, r"55[0-3]|5.. 5\.[12]\.", OutcomeKind.REJECTED_DESTINATION, Subject.DESTINATION, _RFC_3463),
    _rule(_MAIL, "5..", OutcomeKind.REJECTED_CONFIGURATION, Subject.ROUTE),
    # Not SMTP.
    _rule(frozenset({Step.CONTENT}), "", OutcomeKind.UNKNOWN, Subject.PROVIDER),
    _rule(frozenset(Step), "", OutcomeKind.NOT_SENT, Subject.PROVIDER),
)
"""The first that matches counts."""


def verdict_of_reply(step: Step, code: int, text: str) -> Verdict:
    """The verdict of a reply other than success. Of `text`, only the enhanced status code is read."""
    enhanced = _REPLY.match(text)
    reply = f"{code} {enhanced[0]}" if enhanced else f"{code}"
    return next(rule.verdict for rule in RULES if step in rule.steps and rule.pattern.match(reply))


@dataclass(frozen=True, slots=True)
class Mail:
    """The variable headers of an e-mail, and its two bodies."""

    sender: str
    """An ASCII address."""
    sender_name: str
    recipient: str
    """Normalized, so it cannot contain a connection break."""
    message_id: str
    rendered: Rendered


def compose(mail: Mail) -> bytes:
    """The e-mail in RFC 5322 and MIME, with CRLF line ends, before its dots are doubled.

    Bodies are quoted-printable, which every relay accepts. Headers are ASCII, except a recipient of RFC 6532.
    """
    # Quoted-printable writes every "=" as "=3D", so no body can contain the boundary.
    boundary = "=_alternative"
    sender = f"{_encoded(mail.sender_name)} <{mail.sender}>" if mail.sender_name else mail.sender
    lines = (
        f"From: {sender}",
        f"To: {mail.recipient}",
        f"Subject: {_encoded(mail.rendered.subject)}",
        f"Date: {formatdate()}",
        f"Message-ID: <{mail.message_id}>",
        # RFC 3834: asks for no automatic replies.
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/alternative; boundary="{boundary}"',
        "",
        *_part("plain", mail.rendered.text, boundary),
        *_part("html", mail.rendered.html, boundary),
        f"--{boundary}--",
        "",
    )
    return "\r\n".join(lines).encode()


def _part(subtype: str, text: str, boundary: str) -> tuple[str, ...]:
    return (
        f"--{boundary}",
        f"Content-Type: text/{subtype}; charset=utf-8",
        "Content-Transfer-Encoding: quoted-printable",
        "",
        b2a_qp(text.replace("\n", "\r\n").encode()).decode("ascii"),
    )


@lru_cache(maxsize=256)
def _encoded(words: str) -> str:
    """A header value in ASCII (RFC 2047). Cached: subjects and sender names are few."""
    # Always encoded: a plain name with a comma or a dot would need quotes.
    return Header(words, "utf-8", header_name="Subject").encode(linesep="\r\n")


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """An SMTP relay and the sender."""

    host: str
    sender: str
    """The address in From and in MAIL FROM."""
    sender_name: str = ""
    port: int = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    """`tls`: from the first byte (usually port 465). `none`: only for a relay on the same machine."""
    username: str = ""
    """Empty: no login."""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    """PEM file of the CAs to trust instead of the system's, for a relay with a private CA."""
    timeout_seconds: float = 20.0
    """For the whole delivery: connect, login and all steps."""


@dataclass(slots=True)
class _Attempt:
    """The progress of a delivery, which decides what its failure means."""

    step: Step = Step.CONNECT


class Smtp:
    """Sends e-mail, over connections that are reused."""

    name = "smtp"

    def __init__(self, settings: SmtpSettings, templates: Templates, *, clock: Clock) -> None:
        """Opens no connections. Raises OSError when `ca_file` cannot be read."""
        self._settings = settings
        self._templates = templates
        self._clock = clock
        self._tls = ssl.create_default_context(cafile=settings.ca_file)
        self._domain = settings.sender.rpartition("@")[2]
        self._idle: list[SMTP] = []

    async def deliver(self, message: Message) -> Outcome:
        """Send the message to the relay; ACCEPTED means a positive reply to the final dot."""
        rendered = self._templates.render(message, now=self._clock())
        return await self._deliver(message.destination, rendered, message.delivery_id)

    async def mail(self, address: str, subject: str, text: str) -> Outcome:
        """Send a plain e-mail that is not an OTP, as `deliver` does."""
        html = f"<p>{escape(text)}</p>".replace("\n", "<br>\n")
        return await self._deliver(address, Rendered(subject, text, html), new_id())

    async def _deliver(self, recipient: str, rendered: Rendered, mail_id: UUID) -> Outcome:
        attempt = _Attempt()
        settings = self._settings
        mail = Mail(settings.sender, settings.sender_name, recipient, f"{mail_id}@{self._domain}", rendered)
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await self._send(mail, attempt)
        except (SMTPException, OSError) as error:
            # Including TimeoutError and TLS errors, which are OSErrors.
            return self._failure(error, attempt.step)

    async def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _send(self, mail: Mail, attempt: _Attempt) -> Outcome:
        # RFC 5321, section 4.5.2: a dot at the start of a line is doubled, and a line with one dot ends the mail.
        content = compose(mail).replace(b"\r\n.", b"\r\n..") + b".\r\n"
        connection = await self._connect()
        try:
            await self._transfer(connection, mail.recipient, content, attempt)
        except SMTPResponseException as refusal:
            if refusal.code in _BROKEN_CODES or not connection.is_connected:
                connection.close()
            else:
                self._idle.append(connection)
            raise
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return Outcome(OutcomeKind.ACCEPTED, self.name, provider_message_id=mail.message_id)

    async def _connect(self) -> SMTP:
        """An idle connection that still replies, reset with RSET after a possible refusal; or else a new connection."""
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.rset(timeout=_IDLE_CHECK_SECONDS)
            except (SMTPException, OSError):
                connection.close()
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        settings = self._settings
        connection = SMTP(
            hostname=settings.host,
            port=settings.port,
            username=settings.username or None,
            password=settings.password or None,
            local_hostname=self._domain,
            timeout=settings.timeout_seconds,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            tls_context=self._tls,
        )
        await connection.connect()
        return connection

    async def _transfer(self, connection: SMTP, destination: str, content: bytes, attempt: _Attempt) -> None:
        """MAIL, RCPT, DATA and content of RFC 5321. The library's `sendmail` does not say if the final dot was sent."""
        if connection.is_ehlo_or_helo_needed:
            # Without a login, EHLO was not sent yet.
            await connection.ehlo()
        attempt.step = Step.SENDER
        options = [] if destination.isascii() else ["SMTPUTF8"]
        if options and not connection.supports_extension("smtputf8"):
            raise SMTPNotSupported("SMTPUTF8")
        encoding = "utf-8" if options else "ascii"
        await connection.mail(self._settings.sender, options=options, encoding=encoding)
        attempt.step = Step.RECIPIENT
        await connection.rcpt(destination, encoding=encoding)
        attempt.step = Step.DATA
        go_ahead = await connection.execute_command(b"DATA")
        if go_ahead.code != _GO_AHEAD:
            raise SMTPResponseException(go_ahead.code, go_ahead.message)
        protocol = connection.protocol
        if protocol is None:
            raise SMTPServerDisconnected("closed after DATA")
        protocol.write(content)
        attempt.step = Step.CONTENT
        answer = await protocol.read_response()
        if answer.code != _DONE:
            raise SMTPResponseException(answer.code, answer.message)

    def _failure(self, error: SMTPException | OSError, step: Step) -> Outcome:
        if isinstance(error, SMTPResponseException):
            verdict = verdict_of_reply(step, error.code, error.message)
            return Outcome(verdict.kind, self.name, failure_reason=f"smtp_{max(error.code, 0)}", about=verdict.about)
        if step is Step.CONTENT:
            reason = "timeout" if isinstance(error, TimeoutError) else "connection_lost"
            return Outcome(OutcomeKind.UNKNOWN, self.name, failure_reason=reason)
        if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
            return Outcome(
                OutcomeKind.REJECTED_CONFIGURATION, self.name, failure_reason="tls_refused", about=Subject.ACCOUNT
            )
        if isinstance(error, OSError):
            return Outcome(OutcomeKind.NOT_SENT, self.name, failure_reason="unreachable")
        if step is Step.SENDER:
            # The relay lacks SMTPUTF8, which only this address needs: not an error of the configuration.
            return Outcome(
                OutcomeKind.REJECTED_DESTINATION,
                self.name,
                failure_reason="smtp_not_ascii",
                about=Subject.DESTINATION,
            )
        # Raised by the library: the relay offers no STARTTLS, or no login method that the library supports.
        return Outcome(
            OutcomeKind.REJECTED_CONFIGURATION, self.name, failure_reason="smtp_not_supported", about=Subject.ACCOUNT
        )
