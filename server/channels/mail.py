"""An e-mail as it goes over the wire. By hand: the standard library takes two milliseconds of the event loop for it."""

from binascii import b2a_qp
from dataclasses import dataclass
from email.header import Header
from email.utils import formatdate
from functools import lru_cache

from server.channels.templates import Rendered


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail's headers that differ from mail to mail, and its two bodies."""

    sender: str
    """An ASCII address."""
    sender_name: str
    recipient: str
    """Normalised, so without anything that could end a header."""
    message_id: str
    rendered: Rendered


def compose(mail: Mail) -> bytes:
    """The mail in RFC 5322 and MIME, its lines ended by CRLF and its dots not yet doubled.

    Bodies are quoted-printable, so that every relay carries them; the headers are ASCII, but for the recipient of
    RFC 6532.
    """
    # Quoted-printable writes every "=" as "=3D": no body can hold the boundary.
    boundary = "=_alternative"
    sender = f"{_encoded(mail.sender_name)} <{mail.sender}>" if mail.sender_name else mail.sender
    lines = (
        f"From: {sender}",
        f"To: {mail.recipient}",
        f"Subject: {_encoded(mail.rendered.subject)}",
        f"Date: {formatdate()}",
        f"Message-ID: <{mail.message_id}>",
        # RFC 3834: no out-of-office replies to a machine.
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
    """Words of a header in ASCII (RFC 2047). Subjects and sender's names only, of which there are few."""
    # Always encoded: a plain name would need quoting where it holds a comma or a dot.
    return Header(words, "utf-8", header_name="Subject").encode(linesep="\r\n")
