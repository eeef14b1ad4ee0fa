"""Message templates per locale and purpose: loaded from TOML files, checked when they are loaded, and rendered."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from string import Formatter
from unicodedata import bidirectional

from server.providers.provider import Channel, Message
from server.providers.sms_segments import segments

FALLBACK_PURPOSE = "default"
"""The purpose whose template is used for every purpose without a template."""
WEB_OTP_DOMAIN_LENGTH = 24
"""Longest WebOTP domain in characters with which every template fits one SMS segment."""

_FIELDS = ("sms", "subject", "email")
_PLACEHOLDERS = frozenset({"code", "minutes"})
_LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_PURPOSE = re.compile(r"[a-z][a-z0-9_]*")
# Phones also turn two words with a dot between them into a link.
_LINK = re.compile(r"://|www\.|[^\W\d_]\.[^\W\d_]{2}", re.IGNORECASE)
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
class Template:
    """The texts of one purpose in one locale, with the placeholders `{code}` and `{minutes}`."""

    locale: str
    sms: str
    subject: str
    email: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered message. Never logged: it holds the code."""

    subject: str
    """Empty but for e-mail."""
    text: str
    html: str
    """Empty but for e-mail."""


@dataclass(frozen=True, slots=True)
class Templates:
    """All templates, by locale (in lower case) and purpose."""

    by_locale: Mapping[str, Mapping[str, Template]]

    def render(self, message: Message, *, now: datetime) -> Rendered:
        """Render a message in its locale and for its purpose.

        A locale falls back to its language, then to English; a purpose to `default`, of the same locale. `now` is for
        the remaining minutes.
        """
        template = self._find(message.purpose, message.locale)
        remaining = message.expire_time - now
        values = {"code": message.code, "minutes": str(max(1, round(remaining.total_seconds() / 60)))}
        if message.channel is Channel.EMAIL:
            html = _html(template, values)
            return Rendered(template.subject, _fill(template.email, values), html)
        return Rendered("", _append_web_otp(_fill(template.sms, values), message), "")

    def _find(self, purpose: str, locale: str) -> Template:
        candidate = locale.lower().replace("_", "-")
        while candidate not in self.by_locale:
            # RFC 4647, section 3.4 (lookup): remove the last subtag until a locale with templates is left.
            candidate = candidate.rpartition("-")[0] or _FALLBACK_LOCALE
        templates = self.by_locale[candidate]
        return templates.get(purpose.lower(), templates[FALLBACK_PURPOSE])


def load_templates(folder: Path | None) -> Templates:
    """Load the built-in templates, then those of the operator's folder, which replace them by locale and purpose.

    Each locale has a file `<locale>.toml`. Raises ValueError that names the file, the purpose and the broken rule.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder}: the folder of message templates is not there")
    by_locale: dict[str, dict[str, Template]] = {}
    for source in (_BUILT_IN, folder):
        for path in sorted(source.glob("*.toml")) if source else ():
            locale = by_locale.setdefault(path.stem.lower().replace("_", "-"), {})
            locale.update(_load_file(path))
            if FALLBACK_PURPOSE not in locale:
                raise ValueError(f"{path}: needs a table [{FALLBACK_PURPOSE}] for every purpose without its own")
    return Templates(by_locale)


def _load_file(path: Path) -> dict[str, Template]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not TOML in UTF-8: {error}") from error
    templates = {}
    for purpose, table in tables.items():
        try:
            templates[purpose] = _parse_template(path.stem, purpose, table)
            _check_one_segment(templates[purpose])
        except ValueError as error:
            raise ValueError(f"{path}: [{purpose}] {error}") from error
    return templates


def _parse_template(locale: str, purpose: str, table: object) -> Template:
    """Parse one table of a template file. Raises ValueError with the rule that it breaks."""
    if not _LOCALE.fullmatch(locale):
        raise ValueError("is in a file whose name is no locale, such as id.toml or pt-BR.toml")
    if not _PURPOSE.fullmatch(purpose):
        raise ValueError("is no purpose: lower-case letters, digits and underscores")
    if not isinstance(table, Mapping) or set(table) != set(_FIELDS):
        raise ValueError(f"must hold exactly {', '.join(_FIELDS)}")
    for field in _FIELDS:
        _check_text(field, table[field])
    return Template(locale, table["sms"].strip(), table["subject"], table["email"].strip() + "\n")


def _check_text(field: str, text: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field} must be a text")
    used = _placeholders(field, text)
    if _LINK.search(text):
        raise ValueError(f"{field} holds a link: people must never learn to follow links in such messages")
    if field == "subject":
        if used or "\n" in text:
            raise ValueError("subject must be one line without placeholders: mail servers log subjects")
    elif used != _PLACEHOLDERS:
        raise ValueError(f"{field} must hold both {{code}} and {{minutes}}")


def _placeholders(field: str, text: str) -> set[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{field} has a brace that is no placeholder: {error}") from error
    names = {name for _, name, _, _ in parts if name is not None}
    if names - _PLACEHOLDERS or any(form or conversion for _, _, form, conversion in parts):
        raise ValueError(f"{field} has a placeholder other than {{code}} and {{minutes}}")
    return names


def _check_one_segment(template: Template) -> None:
    """Raise ValueError unless the longest SMS fits one segment: an 8-digit code, 10 minutes, the longest domain."""
    code = "8" * 8
    longest = _fill(template.sms, {"code": code, "minutes": "10"}) + _web_otp_line("d" * WEB_OTP_DOMAIN_LENGTH, code)
    result = segments(longest)
    if result.count > 1:
        raise ValueError(
            f"sms is {len(longest)} characters in {result.encoding} with an 8-digit code and a WebOTP line of"
            f" {WEB_OTP_DOMAIN_LENGTH} characters' domain, and must fit one segment (GSM-7: 160, UCS-2: 70)"
        )


def _web_otp_line(domain: str, code: str) -> str:
    """The last line, from which phones and browsers fill in the code: https://wicg.github.io/sms-one-time-codes/."""
    return f"\n@{domain} #{code}"


def _append_web_otp(text: str, message: Message) -> str:
    """Append the WebOTP line to an SMS, unless it would take a second segment: it is only a convenience."""
    if message.channel is not Channel.SMS or not message.web_otp_domain:
        return text
    whole = text + _web_otp_line(message.web_otp_domain, message.code)
    return whole if segments(whole).count == 1 else text


def _is_right_to_left(text: str) -> bool:
    return any(bidirectional(character) in {"R", "AL"} for character in text)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Fill in the placeholders. In right-to-left text the code is isolated, which keeps its digits in order."""
    if _is_right_to_left(template):
        values = {**values, "code": f"\u2066{values['code']}\u2069"}
    return template.format_map(values)


def _html(template: Template, values: Mapping[str, str]) -> str:
    """The e-mail's text as HTML, escaped. A paragraph that is only the code is emphasized."""
    paragraphs = [
        _CODE_PARAGRAPH.format(escape(values["code"]))
        if paragraph == "{code}"
        else f"<p>{escape(_fill(paragraph, values))}</p>"
        for paragraph in template.email.strip().split("\n\n")
    ]
    return _HTML.format(
        language=escape(template.locale),
        direction="rtl" if _is_right_to_left(template.email) else "ltr",
        title=escape(template.subject),
        body="\n".join(paragraphs),
    )
