"""The rules that a template must keep, each with the sentence that an operator reads when one does not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

FALLBACK_PURPOSE = "default"
"""The texts for every purpose that has none of its own."""

_FIELDS = ("sms", "subject", "email")
_PLACEHOLDERS = frozenset({"code", "minutes"})
_LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")
_PURPOSE = re.compile(r"[a-z][a-z0-9_]*")
# Phones also make a link of two words with a dot between them.
_LINK = re.compile(r"://|www\.|[^\W\d_]\.[^\W\d_]{2}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wording:
    """What one purpose says in one locale, with `{code}` and `{minutes}` still to be filled in."""

    locale: str
    sms: str
    subject: str
    email: str


def check_wording(locale: str, purpose: str, table: object) -> Wording:
    """The texts of one table of a template file.

    Raises ValueError with the rule that they break.
    """
    if not _LOCALE.fullmatch(locale):
        raise ValueError("is in a file whose name is no locale, such as id.toml or pt-BR.toml")
    if not _PURPOSE.fullmatch(purpose):
        raise ValueError("is no purpose: lower-case letters, digits and underscores")
    if not isinstance(table, Mapping) or set(table) != set(_FIELDS):
        raise ValueError(f"must hold exactly {', '.join(_FIELDS)}")
    for field in _FIELDS:
        _check_text(field, table[field])
    return Wording(locale, table["sms"].strip(), table["subject"], table["email"].strip() + "\n")


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
