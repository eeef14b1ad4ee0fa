"""The provider smtp: e-mail through an SMTP relay.

The relay accepts a message by its reply to the final dot. After a failure before that dot nothing was sent; without a
reply to it the outcome is UNKNOWN.
"""

import asyncio
import math
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import UUID

import structlog
from aiosmtplib import SMTP, SMTPException, SMTPNotSupported, SMTPResponseException, SMTPServerDisconnected

from server.clock import Clock
from server.ids import new_id
from server.providers.mail import Mail, compose
from server.providers.provider import OPERATOR, Identity, Message, Outcome, OutcomeKind, Subject, Verdict
from server.providers.templates import Rendered, Templates

_GO_AHEAD = 354
_DONE = 250
# 421: the server closes the connection; -1: its reply was not SMTP.
_BROKEN_CODES = frozenset({421, -1})
_IDLE_CHECK_SECONDS = 2.0
_MAILS_OF_EXIM = 10
"""Exim's default of smtp_accept_queue_per_connection: of one connection it delivers no more at once."""
_LONGEST_BOUNCE_NAME = 24  # with "+" and a token 64, which RFC 5321, section 4.5.3.1.1, allows
_GROWTH_SECONDS = 10.0
"""Between two attempts at more connections than the relay allowed."""

_log = structlog.get_logger(__name__)


class Step(Enum):
    """The step that a delivery has reached."""

    WAIT = auto()
    """For a connection that another delivery uses."""
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
    _rule(_BEFORE | _RECIPIENT | _MAIL, "", OutcomeKind.NOT_SENT, Subject.PROVIDER),
)
"""The first that matches counts."""


_UNREACHABLE = Verdict(OutcomeKind.NOT_SENT, Subject.PROVIDER, _RFC_5321)
_NO_REPLY = Verdict(OutcomeKind.UNKNOWN, Subject.PROVIDER, _RFC_5321)
_NOT_ASCII = Verdict(OutcomeKind.REJECTED_DESTINATION, Subject.DESTINATION, "https://www.rfc-editor.org/rfc/rfc6531")
_CONFIGURATION = Verdict(OutcomeKind.REJECTED_CONFIGURATION, Subject.ACCOUNT, _RFC_5321)
# The other connections had more to do than fits into the time-out.
_TOO_BUSY = Verdict(OutcomeKind.NOT_SENT, Subject.SESSION, _RFC_5321)
_BUSY_SECONDS = 1.0


def verdict_of_reply(step: Step, code: int, text: str) -> Verdict:
    """The verdict of a reply other than success. Of `text`, only the enhanced status code is read."""
    enhanced = _REPLY.match(text)
    reply = f"{code} {enhanced[0]}" if enhanced else f"{code}"
    return next(rule.verdict for rule in RULES if step in rule.steps and rule.pattern.match(reply))


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
    """For all before the final dot: a free connection, connect, login and the steps."""
    dot_timeout_seconds: float = 60.0
    """For the reply to the final dot: a relay may take that long to check and to store the mail."""
    connections: int = 50
    """The most that are open; fewer while the relay refuses more."""
    bounce_address: str = ""
    """The envelope's sender, which gets `+` and the mail's token before its `@`; empty: `sender`."""
    idle_seconds: float = 30.0
    """After which an idle connection is closed."""
    mails_per_connection: int | None = None
    """None: as many as the relay takes and delivers at once."""
    reply_to: str = ""
    """The address in Reply-To; empty, as the two below: no such header."""
    feedback_id: str = ""
    auto_response_suppress: str = ""


@dataclass(slots=True)
class _Attempt:
    """The progress of a delivery, which decides what its failure means."""

    step: Step = Step.CONNECT


class _Line(SMTP):
    """A connection to the relay. It tries one login mechanism: a wrong password counts once at the relay."""

    AUTH_METHODS = ("plain", "login", "cram-md5")
    mails_left: float = math.inf

    @property
    def supported_auth_methods(self) -> list[str]:
        return super().supported_auth_methods[:1]


class Lines:
    """The connections to a relay, reused. As many as it allows: it is asked for one more now and then."""

    def __init__(self, settings: SmtpSettings, *, domain: str) -> None:
        """Opens no connections. Raises OSError when the CA file cannot be read."""
        self._settings = settings
        self._domain = domain
        self._tls = ssl.create_default_context(cafile=settings.ca_file)
        self._count = 0
        """Of connections that are open or being opened."""
        self._allowed = settings.connections
        self._next_growth = 0.0
        self._idle: dict[_Line, asyncio.TimerHandle] = {}
        self._waiting: deque[asyncio.Future[_Line | None]] = deque()
        self._closing: set[asyncio.Task[None]] = set()

    async def take(self, attempt: _Attempt) -> tuple[_Line, bool]:
        """A connection that is ready for MAIL, and whether it is new; `give_back` or `drop` must follow.

        An idle one, else a new one, else the next that is given back. A relay that refuses one more connection beside
        others allows no more; its refusal is raised only if there is no other.
        """
        while True:
            line = None
            if self._idle:
                line, timer = self._idle.popitem()
                timer.cancel()
            elif self._count < self._limit():
                attempt.step = Step.CONNECT
                if line := await self._open():
                    return line, True
            else:
                attempt.step = Step.WAIT
                line = await self._next()
            if line and await self._answers(line):
                return line, False

    def give_back(self, line: _Line) -> None:
        """Return a connection that is still usable, after RSET."""
        line.mails_left -= 1
        if not line.is_connected:
            self.drop(line)
        elif line.mails_left <= 0:
            self._end(line)
        elif not self._wake(line):
            retire = asyncio.get_running_loop().call_later(self._settings.idle_seconds, self._retire, line)
            self._idle[line] = retire

    def drop(self, line: _Line) -> None:
        """Close a connection that is not usable any more."""
        line.close()
        self._forget()

    async def close(self) -> None:
        """End the idle connections with QUIT."""
        for line, timer in list(self._idle.items()):
            timer.cancel()
            self._retire(line)
        await asyncio.gather(*self._closing)

    def _limit(self) -> int:
        now = time.monotonic()
        if self._allowed < self._settings.connections and now >= self._next_growth:
            self._allowed += 1
            self._next_growth = now + _GROWTH_SECONDS
        return self._allowed

    async def _open(self) -> _Line | None:
        """A new connection; None when the relay refused it beside others."""
        settings = self._settings
        line = _Line(
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
        self._count += 1
        try:
            # A relay whose processes are all busy accepts a connection and stays silent.
            async with asyncio.timeout(settings.timeout_seconds / 2):
                greeting = await line.connect()
                line.mails_left = settings.mails_per_connection or (
                    _MAILS_OF_EXIM if " Exim " in greeting.message else math.inf
                )
                if line.is_ehlo_or_helo_needed:  # without STARTTLS and a login
                    await line.ehlo()
        except BaseException as error:
            self.drop(line)
            if not self._count or not _is_refusal(error):
                raise
            self._allowed = min(self._allowed, self._count)
            self._next_growth = time.monotonic() + _GROWTH_SECONDS
            return None
        return line

    async def _answers(self, line: _Line) -> bool:
        """Whether a used connection replies to RSET, which ends a refused mail; it is closed otherwise."""
        try:
            await line.rset(timeout=_IDLE_CHECK_SECONDS)
        except BaseException as error:
            self.drop(line)
            if not isinstance(error, SMTPException | OSError):
                raise
            return False
        return True

    async def _next(self) -> _Line | None:
        """The next connection that is given back; None when there is a place for a new one."""
        waiter: asyncio.Future[_Line | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                raise
            if line := waiter.result():
                self.give_back(line)
            else:
                self._wake(None)
            raise

    def _wake(self, line: _Line | None) -> bool:
        """Hand a connection, or None for a free place, to the delivery that waits longest; False without one."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(line)
                return True
        return False

    def _forget(self) -> None:
        self._count -= 1
        self._wake(None)

    def _retire(self, line: _Line) -> None:
        del self._idle[line]
        self._end(line)

    def _end(self, line: _Line) -> None:
        task = asyncio.create_task(self._quit(line))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _quit(self, line: _Line) -> None:
        try:
            with suppress(SMTPException, OSError):
                await line.quit(timeout=_IDLE_CHECK_SECONDS)
        finally:
            self.drop(line)


def _is_refusal(error: BaseException) -> bool:
    """Whether a relay that serves other connections may say so to one too many: 421, silence, or no connection."""
    if isinstance(error, SMTPResponseException):
        return not 500 <= error.code < 600  # noqa: PLR2004 - 5yz is permanent
    return isinstance(error, OSError) and not isinstance(error, ssl.SSLError)


class Smtp:
    """Sends e-mail, over connections that are reused."""

    name = "smtp"

    def __init__(
        self,
        settings: SmtpSettings,
        templates: Templates,
        *,
        clock: Clock,
        mail_token: Callable[[UUID], str] | None = None,
    ) -> None:
        """Opens no connections. `mail_token` makes the token by which a report finds the delivery of a mail.

        Raises OSError when `ca_file` cannot be read, and ValueError for a bounce address with too long a local part.
        """
        if len(settings.bounce_address.rpartition("@")[0]) > _LONGEST_BOUNCE_NAME:
            raise ValueError(f"PULSA_SMTP_BOUNCE_ADDRESS: at most {_LONGEST_BOUNCE_NAME} characters before the @")
        self._mail_token = mail_token
        self._settings = settings
        self._templates = templates
        self._clock = clock
        self._domain = settings.sender.rpartition("@")[2]
        headers = {
            "Feedback-ID": settings.feedback_id,
            "X-Auto-Response-Suppress": settings.auto_response_suppress,
        }
        self._headers = tuple(f"{name}: {value}" for name, value in headers.items() if value)
        self._lines = Lines(settings, domain=self._domain)

    async def deliver(self, message: Message) -> Outcome:
        """Send the message to the relay; ACCEPTED means a positive reply to the final dot.

        When it is cancelled after the final dot, it returns UNKNOWN: the mail must not be sent again.
        """
        rendered = self._templates.render(message, now=self._clock())
        token = self._mail_token(message.delivery_id) if self._mail_token else ""
        return await self._deliver(message.destination, rendered, str(message.delivery_id), token, message.identity)

    async def mail(self, address: str, rendered: Rendered) -> Outcome:
        """Send an e-mail that is not an OTP, as `deliver` does."""
        return await self._deliver(address, rendered, f"notice.{new_id()}")

    async def _deliver(
        self, recipient: str, rendered: Rendered, mail_id: str, token: str = "", identity: Identity = OPERATOR
    ) -> Outcome:
        attempt = _Attempt()
        settings = self._settings
        message_id = f"{mail_id}@{self._domain}"
        reply_to = identity.email_reply_to or settings.reply_to
        mail = Mail(
            settings.sender,
            identity.email_sender_name or settings.sender_name,
            recipient,
            message_id,
            rendered,
            token,
            (f"Reply-To: {reply_to}", *self._headers) if reply_to else self._headers,
        )
        try:
            async with asyncio.timeout(settings.timeout_seconds) as bound:
                return await self._send(mail, attempt, bound)
        except (SMTPException, OSError) as error:
            # Including TimeoutError and TLS errors, which are OSErrors.
            return self._failure(error, attempt.step)
        except asyncio.CancelledError:
            if attempt.step is not Step.CONTENT:
                raise
            return Outcome(OutcomeKind.UNKNOWN, self.name, failure_reason="shutdown")
        except Exception as error:  # a bug here; its text may quote the mail, so it is not logged
            if attempt.step is Step.CONTENT:
                raise
            _log.error("a mail could not be written", error=type(error).__name__)
            return Outcome(OutcomeKind.REJECTED_CONFIGURATION, self.name, failure_reason="crashed", about=Subject.ROUTE)

    async def close(self) -> None:
        """Close the idle connections."""
        await self._lines.close()

    async def _send(self, mail: Mail, attempt: _Attempt, bound: asyncio.Timeout) -> Outcome:
        # RFC 5321, section 4.5.2: a dot at the start of a line is doubled, and a line with one dot ends the mail.
        content = compose(mail).replace(b"\r\n.", b"\r\n..") + b".\r\n"
        while True:
            line, is_new = await self._lines.take(attempt)
            try:
                await self._transfer(line, mail, content, attempt, bound)
            except SMTPResponseException as refusal:
                if refusal.code not in _BROKEN_CODES:
                    self._lines.give_back(line)
                    raise
                self._lines.drop(line)
                # A session may have a limit of mails, or of time: the mail goes by another one.
                if is_new or attempt.step is Step.CONTENT:
                    raise
            except SMTPServerDisconnected:
                self._lines.drop(line)
                if is_new or attempt.step is Step.CONTENT:
                    raise
            except BaseException:
                self._lines.drop(line)
                raise
            else:
                self._lines.give_back(line)
                return Outcome(OutcomeKind.ACCEPTED, self.name, provider_message_id=mail.message_id)

    async def _transfer(
        self, line: _Line, mail: Mail, content: bytes, attempt: _Attempt, bound: asyncio.Timeout
    ) -> None:
        """MAIL, RCPT, DATA and content of RFC 5321. The library's `sendmail` does not say if the final dot was sent."""
        attempt.step = Step.SENDER
        destination = mail.recipient
        options = [] if destination.isascii() else ["SMTPUTF8"]
        if options and not line.supports_extension("smtputf8"):
            raise SMTPNotSupported("SMTPUTF8")
        encoding = "utf-8" if options else "ascii"
        await line.mail(self._envelope_sender(mail), options=options, encoding=encoding)
        attempt.step = Step.RECIPIENT
        await line.rcpt(destination, encoding=encoding)
        attempt.step = Step.DATA
        go_ahead = await line.execute_command(b"DATA")
        if go_ahead.code != _GO_AHEAD:
            raise SMTPResponseException(go_ahead.code, go_ahead.message)
        protocol = line.protocol
        if protocol is None:
            raise SMTPServerDisconnected("closed after DATA")
        protocol.write(content)
        attempt.step = Step.CONTENT
        bound.reschedule(asyncio.get_running_loop().time() + self._settings.dot_timeout_seconds)
        answer = await protocol.read_response()
        if answer.code != _DONE:
            raise SMTPResponseException(answer.code, answer.message)

    def _envelope_sender(self, mail: Mail) -> str:
        local, at, domain = self._settings.bounce_address.rpartition("@")
        return f"{local}+{mail.token}{at}{domain}" if at and mail.token else mail.sender

    def _failure(self, error: SMTPException | OSError, step: Step) -> Outcome:
        if isinstance(error, SMTPResponseException):
            verdict, reason = verdict_of_reply(step, error.code, error.message), f"smtp_{max(error.code, 0)}"
        elif step is Step.WAIT:
            verdict, reason = _TOO_BUSY, "busy"
        elif step is Step.CONTENT:
            verdict, reason = _NO_REPLY, "timeout" if isinstance(error, TimeoutError) else "connection_lost"
        elif isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
            verdict, reason = _CONFIGURATION, "tls_refused"
        elif isinstance(error, OSError):
            verdict, reason = _UNREACHABLE, "unreachable"
        elif step is Step.SENDER:
            # The relay lacks SMTPUTF8, which only this address needs.
            verdict, reason = _NOT_ASCII, "smtp_not_ascii"
        else:
            # Raised by the library: the relay offers no STARTTLS, or no login method that the library supports.
            verdict, reason = _CONFIGURATION, "smtp_not_supported"
        retry_after = _BUSY_SECONDS if verdict is _TOO_BUSY else None
        return Outcome(verdict.kind, self.name, "", reason, retry_after, verdict.about)
