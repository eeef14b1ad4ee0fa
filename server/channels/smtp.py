"""E-mail through an SMTP relay, which takes over the message at the final dot and not before."""

import asyncio
import ssl
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal
from uuid import UUID

from aiosmtplib import SMTP, SMTPException, SMTPNotSupported, SMTPResponseException, SMTPServerDisconnected

from server.channels.channel import Message, Outcome, OutcomeKind
from server.channels.mail import Mail, compose
from server.channels.smtp_replies import Step, kind_of_refusal
from server.channels.templates import Rendered, Templates
from server.ids import new_id

_GO_AHEAD = 354
_DONE = 250
# The server says goodbye, or what it said was no SMTP.
_BROKEN_CODES = frozenset({421, -1})
_IDLE_CHECK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """One relay and what it sends as."""

    host: str
    sender: str
    """The address in From and in the envelope."""
    sender_name: str = ""
    port: int = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    """`tls` from the first byte (usually port 465); `none` only for a relay on this machine."""
    username: str = ""
    """Empty for a relay that asks for no login."""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    """Trusted instead of the system's authorities, for a relay with a private one."""
    timeout_seconds: float = 20.0
    """For the whole delivery: connecting, login and all steps."""


@dataclass(slots=True)
class _Attempt:
    """How far one delivery came, for whoever must judge what its failure means."""

    step: Step = Step.CONNECT


class Smtp:
    """Sends an e-mail per delivery, over connections that are used again."""

    provider = "smtp"

    def __init__(self, settings: SmtpSettings, templates: Templates) -> None:
        """Opens nothing yet. Raises OSError when the file of authorities cannot be read."""
        self._settings = settings
        self._templates = templates
        self._tls = ssl.create_default_context(cafile=settings.ca_file)
        self._domain = settings.sender.rpartition("@")[2]
        self._idle: list[SMTP] = []

    async def deliver(self, message: Message) -> Outcome:
        """Hand the message to the relay; ACCEPTED means that it answered the final dot with success."""
        return await self._deliver(message.destination, self._templates.render(message), message.delivery_id)

    async def mail(self, address: str, subject: str, text: str) -> Outcome:
        """Hand over a plain mail that is no OTP, as `deliver` does."""
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
            # TimeoutError is an OSError, and so are TLS's errors.
            return self._judge(error, attempt.step)

    async def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _send(self, mail: Mail, attempt: _Attempt) -> Outcome:
        # What follows DATA: the mail with its dots doubled, and the final one (RFC 5321, section 4.5.2).
        content = compose(mail).replace(b"\r\n.", b"\r\n..") + b".\r\n"
        line = await self._line()
        try:
            await self._hand_over(line, mail.recipient, content, attempt)
        except SMTPResponseException as refusal:
            if refusal.code in _BROKEN_CODES or not line.is_connected:
                line.close()
            else:
                self._idle.append(line)
            raise
        except BaseException:
            line.close()
            raise
        self._idle.append(line)
        return Outcome(OutcomeKind.ACCEPTED, self.provider, provider_message_id=mail.message_id)

    async def _line(self) -> SMTP:
        """A connection that answers: an idle one, cleared of what a refusal left behind, or a new one."""
        while self._idle:
            line = self._idle.pop()
            try:
                await line.rset(timeout=_IDLE_CHECK_SECONDS)
            except (SMTPException, OSError):
                line.close()
            except BaseException:
                line.close()
                raise
            else:
                return line
        settings = self._settings
        line = SMTP(
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
        await line.connect()
        return line

    async def _hand_over(self, line: SMTP, destination: str, content: bytes, attempt: _Attempt) -> None:
        """The four steps of RFC 5321. Not the library's `sendmail`, which does not tell DATA from its final dot."""
        if line.is_ehlo_or_helo_needed:
            # Without a login nobody has asked yet what the relay can do.
            await line.ehlo()
        attempt.step = Step.SENDER
        options = [] if destination.isascii() else ["SMTPUTF8"]
        if options and not line.supports_extension("smtputf8"):
            raise SMTPNotSupported("SMTPUTF8")
        encoding = "utf-8" if options else "ascii"
        await line.mail(self._settings.sender, options=options, encoding=encoding)
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
        answer = await protocol.read_response()
        if answer.code != _DONE:
            raise SMTPResponseException(answer.code, answer.message)

    def _judge(self, error: SMTPException | OSError, step: Step) -> Outcome:
        if isinstance(error, SMTPResponseException):
            kind = kind_of_refusal(step, error.code, error.message)
            return Outcome(kind, self.provider, failure_reason=f"smtp_{max(error.code, 0)}")
        if step is Step.CONTENT:
            reason = "timeout" if isinstance(error, TimeoutError) else "connection_lost"
            return Outcome(OutcomeKind.UNKNOWN, self.provider, failure_reason=reason)
        if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
            return Outcome(OutcomeKind.REJECTED_CONFIGURATION, self.provider, failure_reason="tls_refused")
        if isinstance(error, OSError):
            return Outcome(OutcomeKind.NOT_SENT, self.provider, failure_reason="unreachable")
        if step is Step.SENDER:
            # The relay's limit, but nothing that an operator must mend: it is this address that cannot be reached.
            return Outcome(OutcomeKind.REJECTED_DESTINATION, self.provider, failure_reason="smtp_not_ascii")
        # The library's own objections: no STARTTLS, no way to log in that both sides know.
        return Outcome(OutcomeKind.REJECTED_CONFIGURATION, self.provider, failure_reason="smtp_not_supported")
