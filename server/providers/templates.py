"""Message templates per locale and purpose: loaded from TOML files, checked when they are loaded, and rendered."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from pathlib import Path
from string import Formatter
from unicodedata import bidirectional, category

from server.providers.provider import Channel, Message
from server.providers.sms_segments import segments

FALLBACK_PURPOSE = "default"
"""The purpose whose template is used for every purpose without a template."""
WEB_OTP_DOMAIN_LENGTH = 24
"""Longest WebOTP domain in characters with which every template fits one SMS segment."""

_FIELDS = ("sms", "subject", "email")
_PLACEHOLDERS = frozenset({"brand", "code", "time"})
_BRAND = "{brand}"
_LONGEST_CODE = 8
_UNITS = ("minutes", "seconds")
# Deprecated codes of the IANA Language Subtag Registry (RFC 5646), which Java and Android still use.
_PREFERRED_LANGUAGES: Mapping[str, str] = {"in": "id", "iw": "he", "ji": "yi", "jw": "jv", "mo": "ro"}
_LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_PURPOSE = re.compile(r"[a-z][a-z0-9_]*")
# Phones also turn two words with a dot between them into a link.
_LINK = re.compile(r"://|www\.|[^\W\d_]\.[^\W\d_]{2}", re.IGNORECASE)
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
_BUILT_IN = Path(__file__).parent / "messages"
_FALLBACK_LOCALE = "en"

_HTML = """<!doctype html>
<html lang="{language}" dir="{direction}" style="color-scheme:light dark">
<head><meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>{title}</title></head>
<body style="font:16px/1.5 sans-serif;max-width:32em;margin:2em auto;padding:0 1em">
{body}
</body>
</html>
"""
# The paragraph is aligned as the text, the code alone is left to right.
_CODE_PARAGRAPH = (
    '<p style="font-size:32px;font-weight:bold;letter-spacing:6px;margin:.5em 0"><bdi dir="ltr">{}</bdi></p>'
)
_BRAND_PARAGRAPH = '<p style="font-weight:bold"><bdi>{}</bdi></p>'


@dataclass(frozen=True, slots=True)
class Template:
    """The texts of one purpose in one locale, with the placeholders `{brand}`, `{code}` and `{time}`."""

    locale: str
    sms: str
    subject: str
    email: str
    units: Mapping[str, str]
    """How `{time}` is written in minutes and in seconds, with the placeholder `{n}`."""
    plain_sms: str
    """`sms` and `email` without `{brand}`, for an organization that has none."""
    plain_email: str

    def time(self, remaining: timedelta) -> str:
        """The remaining time in whole minutes, or in seconds below a minute; never more than there is."""
        seconds = max(0, int(remaining.total_seconds()))
        minutes = seconds // 60
        return self.units["minutes"].format(n=minutes) if minutes else self.units["seconds"].format(n=seconds)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered message. Never logged: it holds the code."""

    subject: str
    """Empty but for e-mail."""
    text: str
    html: str
    """Empty but for e-mail."""
    autofill: bool = False
    """Whether it has the line by which phones and browsers fill the code in."""


@dataclass(frozen=True, slots=True)
class Templates:
    """All templates, by locale (in lower case) and purpose."""

    by_locale: Mapping[str, Mapping[str, Template]]

    def render(self, message: Message, *, now: datetime) -> Rendered:
        """Render a message in its locale and for its purpose.

        A locale falls back to its language, then to English; a purpose to `default`, of the same locale. `now` is for
        the remaining time.
        """
        template = self._find(message.purpose, message.locale)
        brand = message.identity.brand_name
        values = {"code": message.code, "time": template.time(message.expire_time - now), "brand": brand}
        if message.channel is Channel.EMAIL:
            email = template.email if brand else template.plain_email
            return Rendered(template.subject, _fill(email, values), _html(template, email, values))
        text = _fill_sms(template, values)
        whole = _with_autofill(text, message)
        return Rendered("", whole, "", autofill=whole is not text)

    def check_brand(self, name: str) -> None:
        """Raise ValueError, with the rule, for a name with which a message holds a link or is not one SMS."""
        check_name(name)
        for locale, templates in self.by_locale.items():
            for purpose, template in templates.items():
                if segments(_longest_sms(template, name)).count > 1:
                    raise ValueError(
                        f"a name with which every SMS is one segment; with this one the SMS {locale} {purpose} is not:"
                        " a character outside of the GSM alphabet leaves room for 70 instead of 160"
                    )

    def _find(self, purpose: str, locale: str) -> Template:
        found = next((each for each in lookup_locales(locale) if each in self.by_locale), _FALLBACK_LOCALE)
        templates = self.by_locale[found]
        return templates.get(purpose.lower(), templates[FALLBACK_PURPOSE])


def lookup_locales(locale: str) -> Iterator[str]:
    """The locale in lower case with hyphens, then shorter and shorter: RFC 4647, section 3.4 (lookup).

    Reads Java's and Android's spelling too: `in_ID` yields `id-id` and `id`.
    """
    language, _, rest = locale.lower().replace("_", "-").replace("#", "").partition("-")
    language = _PREFERRED_LANGUAGES.get(language, language)
    candidate = f"{language}-{rest}" if rest else language
    while candidate:
        yield candidate
        candidate = candidate.rpartition("-")[0]


def check_name(name: str) -> None:
    """Raise ValueError, with the rule, for a name that people could take for a link or not see as it is."""
    if _LINK.search(name):
        raise ValueError("a name that is no link, also not to phones, which make one of two words with a dot between")
    if name != name.strip() or any(category(character) in _INVISIBLE for character in name):
        raise ValueError("a name without invisible characters, and without spaces around it")


def load_templates(folder: Path | None) -> Templates:
    """Load the built-in templates, then those of the operator's folder, which replace them by locale and purpose.

    Each locale has a file `<locale>.toml`. Raises ValueError that names the file, the purpose and the broken rule.
    """
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder}: the folder of message templates is not there")
    by_locale: dict[str, dict[str, Template]] = {}
    units: dict[str, Mapping[str, str]] = {}
    for source in (_BUILT_IN, folder):
        for path in sorted(source.glob("*.toml")) if source else ():
            name = next(lookup_locales(path.stem), "")
            locale = by_locale.setdefault(name, {})
            locale.update(_load_file(path, name, units))
            if FALLBACK_PURPOSE not in locale:
                raise ValueError(f"{path}: needs a table [{FALLBACK_PURPOSE}] for every purpose without its own")
    return Templates(by_locale)


def _load_file(path: Path, locale: str, known_units: dict[str, Mapping[str, str]]) -> dict[str, Template]:
    """The templates of a file, by purpose; `known_units` are by locale, and get those of the file."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not TOML in UTF-8: {error}") from error
    templates = {}
    if "units" in tables:
        known_units[locale] = _parse_units(path, tables.pop("units"))
    units = next((known_units[each] for each in lookup_locales(locale) if each in known_units), None)
    if units is None:
        raise ValueError(f"{path}: needs a table [units] with {' and '.join(_UNITS)}")
    for purpose, table in tables.items():
        try:
            templates[purpose] = _parse_template(path.stem, purpose, table, units)
            _check_one_segment(templates[purpose])
        except ValueError as error:
            raise ValueError(f"{path}: [{purpose}] {error}") from error
    return templates


def _parse_units(path: Path, table: object) -> Mapping[str, str]:
    if not isinstance(table, Mapping) or set(table) != set(_UNITS):
        raise ValueError(f"{path}: [units] must hold exactly {' and '.join(_UNITS)}")
    if not all(
        isinstance(unit, str) and unit.count("{n}") == unit.count("{") == unit.count("}") == 1
        for unit in table.values()
    ):
        raise ValueError(f"{path}: [units] must be texts with {{n}}, such as {{n}} min")
    return table


def _parse_template(locale: str, purpose: str, table: object, units: Mapping[str, str]) -> Template:
    """Parse one table of a template file. Raises ValueError with the rule that it breaks."""
    if not _LOCALE.fullmatch(locale):
        raise ValueError("is in a file whose name is no locale, such as id.toml or pt-BR.toml")
    if not _PURPOSE.fullmatch(purpose):
        raise ValueError("is no purpose: lower-case letters, digits and underscores")
    if not isinstance(table, Mapping) or set(table) != set(_FIELDS):
        raise ValueError(f"must hold exactly {', '.join(_FIELDS)}")
    for field in _FIELDS:
        _check_text(field, table[field])
    sms, email = table["sms"].strip(), table["email"].strip() + "\n"
    if not sms.startswith(_BRAND):
        raise ValueError(f"sms must begin with {_BRAND}")
    if _BRAND not in email.split("\n\n"):
        raise ValueError(f"email must have {_BRAND} in a paragraph of its own, and text after it")
    plain_sms, plain_email = sms.removeprefix(_BRAND), email.replace(f"{_BRAND}\n\n", "", 1)
    if _BRAND in plain_sms or _BRAND in plain_email:
        raise ValueError(f"{_BRAND} must be in each text once")
    return Template(locale, sms, table["subject"], email, units, plain_sms, plain_email)


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
        raise ValueError(f"{field} must hold {{brand}}, {{code}} and {{time}}")


def _placeholders(field: str, text: str) -> set[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{field} has a brace that is no placeholder: {error}") from error
    names = {name for _, name, _, _ in parts if name is not None}
    if names - _PLACEHOLDERS or any(form or conversion for _, _, form, conversion in parts):
        raise ValueError(f"{field} has a placeholder other than {{brand}}, {{code}} and {{time}}")
    return names


def _check_one_segment(template: Template) -> None:
    """Raise ValueError unless the longest SMS fits one segment: an 8-digit code, 10 minutes, the longest domain.

    With a brand name of 20 characters it does too, as the domain's line is longer, and is then left out.
    """
    code = "8" * _LONGEST_CODE
    longest = _longest_sms(template, "") + _autofill_line("d" * WEB_OTP_DOMAIN_LENGTH, code)
    result = segments(longest)
    if result.count > 1:
        raise ValueError(
            f"sms is {len(longest)} characters in {result.encoding} with an 8-digit code and a WebOTP line of"
            f" {WEB_OTP_DOMAIN_LENGTH} characters' domain, and must fit one segment (GSM-7: 160, UCS-2: 70)"
        )


def _longest_sms(template: Template, brand: str) -> str:
    """The longest text of an SMS: an 8-digit code, 10 minutes."""
    time = max((template.time(timedelta(seconds=seconds)) for seconds in (59, 600)), key=len)
    return _fill_sms(template, {"code": "8" * _LONGEST_CODE, "time": time, "brand": brand})


def _autofill_line(domain: str, code: str) -> str:
    """The last line, by which phones and browsers fill the code in, or Android finds the app that reads it.

    https://wicg.github.io/sms-one-time-codes/ and https://developers.google.com/identity/sms-retriever/verify
    """
    return f"\n{domain[1:]}" if domain.startswith("#") else f"\n@{domain} #{code}"


def _with_autofill(text: str, message: Message) -> str:
    """The SMS with its last line, unless that would take a second segment: it is only a convenience."""
    if message.channel is not Channel.SMS or not message.web_otp_domain:
        return text
    whole = text + _autofill_line(message.web_otp_domain, message.code)
    return whole if segments(whole).count == 1 else text


def is_right_to_left(text: str) -> bool:
    """Whether the text has letters that are written from right to left."""
    return any(bidirectional(character) in {"R", "AL"} for character in text)


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Fill in the placeholders. In right-to-left text the code is isolated, which keeps its digits in order."""
    if is_right_to_left(template):
        values = {**values, "code": f"\u2066{values['code']}\u2069"}
    return template.format_map(values)


def _fill_sms(template: Template, values: Mapping[str, str]) -> str:
    """The text of an SMS. In right-to-left text the brand is isolated: it does not make the rest left to right."""
    brand = values["brand"]
    if not brand:
        return _fill(template.plain_sms, values)
    isolated = f"\u2068{brand}\u2069" if is_right_to_left(template.sms) else brand
    return _fill(template.sms, {**values, "brand": f"{isolated}: "})


def _html(template: Template, email: str, values: Mapping[str, str]) -> str:
    """The e-mail's text as HTML, escaped. A paragraph that is only the code or the brand is emphasized."""
    emphasized = {"{code}": _CODE_PARAGRAPH, _BRAND: _BRAND_PARAGRAPH}
    paragraphs = [
        emphasized[paragraph].format(escape(values[paragraph.strip("{}")]))
        if paragraph in emphasized
        else f"<p>{escape(_fill(paragraph, values))}</p>"
        for paragraph in email.strip().split("\n\n")
    ]
    return html_document(template.locale, template.subject, paragraphs)


def html_document(language: str, title: str, paragraphs: Sequence[str]) -> str:
    """A whole document of paragraphs in HTML, from right to left if they have such text."""
    return _HTML.format(
        language=escape(language),
        direction="rtl" if is_right_to_left("".join(paragraphs)) else "ltr",
        title=escape(title),
        body="\n".join(paragraphs),
    )
