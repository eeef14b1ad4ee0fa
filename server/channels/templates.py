"""What people read: texts per purpose and locale, checked when they load, so that no send finds a fault in them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from unicodedata import bidirectional

from server.channels.channel import ChannelName, Message
from server.channels.segments import segments
from server.channels.wording import FALLBACK_PURPOSE, Wording, check_wording

_BUILT_IN = Path(__file__).parent / "messages"
_FALLBACK_LOCALE = "en"

_HTML = """<!doctype html>
<html lang="{language}" dir="{direction}">
<head><meta charset="utf-8"><title>{title}</title></head>
<body style="font:16px/1.5 sans-serif;color:#222;max-width:32em;margin:2em auto;padding:0 1em">
{body}
</body>
</html>
"""
_CODE_PARAGRAPH = '<p dir="ltr" style="font-size:32px;font-weight:bold;letter-spacing:6px;margin:.5em 0">{}</p>'


@dataclass(frozen=True, slots=True)
class Rendered:
    """One message as it leaves. Never logged: it holds the code."""

    subject: str
    """Empty but for e-mail."""
    text: str
    html: str
    """Empty but for e-mail."""


@dataclass(frozen=True, slots=True)
class Templates:
    """Every text there is, by locale (in lower case) and purpose."""

    wordings: Mapping[str, Mapping[str, Wording]]

    def render(self, message: Message, *, now: datetime | None = None) -> Rendered:
        """The message in its own language and for its purpose, or the nearest that there is.

        A locale falls back to its language and then to English; a purpose to `default`, of the same locale.
        """
        wording = self._find(message.purpose, message.locale)
        remaining = message.expire_time - (now or datetime.now(UTC))
        values = {"code": message.code, "minutes": str(max(1, round(remaining.total_seconds() / 60)))}
        if message.channel is ChannelName.EMAIL:
            html = _html(wording, values)
            return Rendered(wording.subject, _fill(wording.email, values), html)
        return Rendered("", _with_web_otp(_fill(wording.sms, values), message), "")

    def _find(self, purpose: str, locale: str) -> Wording:
        candidate = locale.lower().replace("_", "-")
        while candidate not in self.wordings:
            # RFC 4647, section 3.4 (lookup): drop the last part until something is left that we speak.
            candidate = candidate.rpartition("-")[0] or _FALLBACK_LOCALE
        spoken = self.wordings[candidate]
        return spoken.get(purpose.lower(), spoken[FALLBACK_PURPOSE])


def load_templates(folder: Path | None) -> Templates:
    """The built-in texts, with those of the operator's own folder over them, one file `<locale>.toml` per locale.

    Raises ValueError that names the file, the purpose and the rule that it breaks.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder}: the folder of message templates is not there")
    wordings: dict[str, dict[str, Wording]] = {}
    for source in (_BUILT_IN, folder):
        for path in sorted(source.glob("*.toml")) if source else ():
            locale = wordings.setdefault(path.stem.lower().replace("_", "-"), {})
            locale.update(_load_file(path))
            if FALLBACK_PURPOSE not in locale:
                raise ValueError(f"{path}: needs a table [{FALLBACK_PURPOSE}] for every purpose without its own")
    return Templates(wordings)


def _load_file(path: Path) -> dict[str, Wording]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not TOML in UTF-8: {error}") from error
    wordings = {}
    for purpose, table in tables.items():
        try:
            wordings[purpose] = check_wording(path.stem, purpose, table)
            _check_one_segment(wordings[purpose])
        except ValueError as error:
            raise ValueError(f"{path}: [{purpose}] {error}") from error
    return wordings


WEB_OTP_DOMAIN_LENGTH = 24
"""A WebOTP domain of up to so many characters never costs a second segment, in any locale."""


def _check_one_segment(wording: Wording) -> None:
    """The longest that it can become must be one message: an 8-digit code, 10 minutes, the longest domain."""
    code = "8" * 8
    longest = _fill(wording.sms, {"code": code, "minutes": "10"}) + _web_otp("d" * WEB_OTP_DOMAIN_LENGTH, code)
    made = segments(longest)
    if made.count > 1:
        raise ValueError(
            f"sms is {len(longest)} characters in {made.encoding} with an 8-digit code and a WebOTP line of"
            f" {WEB_OTP_DOMAIN_LENGTH} characters' domain, and must fit one segment (GSM-7: 160, UCS-2: 70)"
        )


def _web_otp(domain: str, code: str) -> str:
    """The last line that phones and browsers fill in from: https://wicg.github.io/sms-one-time-codes/."""
    return f"\n@{domain} #{code}"


def _with_web_otp(text: str, message: Message) -> str:
    """The text with its WebOTP line, but without it when that would cost a second segment: it is a convenience."""
    if message.channel is not ChannelName.SMS or not message.web_otp_domain:
        return text
    whole = text + _web_otp(message.web_otp_domain, message.code)
    return whole if segments(whole).count == 1 else text


def _is_right_to_left(text: str) -> bool:
    return any(bidirectional(character) in {"R", "AL"} for character in text)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """The text with its values; in right-to-left text the code is isolated, so that nothing moves its digits."""
    if _is_right_to_left(template):
        values = {**values, "code": f"\u2066{values['code']}\u2069"}
    return template.format_map(values)


def _html(wording: Wording, values: Mapping[str, str]) -> str:
    """The paragraphs of the e-mail's text, everything escaped; a paragraph that is the code alone stands out."""
    paragraphs = [
        _CODE_PARAGRAPH.format(escape(values["code"]))
        if paragraph == "{code}"
        else f"<p>{escape(_fill(paragraph, values))}</p>"
        for paragraph in wording.email.strip().split("\n\n")
    ]
    return _HTML.format(
        language=escape(wording.locale),
        direction="rtl" if _is_right_to_left(wording.email) else "ltr",
        title=escape(wording.subject),
        body="\n".join(paragraphs),
    )
