"""The types of settings' values: what each accepts from an environment variable, and how it is read."""

import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from decimal import Decimal
from typing import Annotated, Literal

from email_validator import EmailNotValidError, validate_email
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

KEY_BYTES = 32
"""Length of each key."""
MAXIMUM_DIGEST_KEYS = 2
"""The current digest key, and during a rotation the one before or after it."""
ADDRESS = r"^\S+:\d{1,5}$"
"""Pattern of `host:port`."""
NumberType = Literal[
    "mobile",
    "fixed_line_or_mobile",
    "fixed_line",
    "satellite",
    "voip",
    "premium_rate",
    "toll_free",
    "shared_cost",
    "personal_number",
    "pager",
    "uan",
    "voicemail",
]
"""Types of phone numbers; `satellite` are mobile phones of no country."""
AREA = re.compile(r"[A-Z]{2}|001|\+[1-9][0-9]{0,14}")
"""A country (ISO 3166-1 alpha-2, or 001 for numbers of no country) or a number prefix (E.164)."""


def _words(value: object) -> object:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


def _is_database(value: SecretStr | None) -> SecretStr | None:
    try:
        conninfo_to_dict(value.get_secret_value() if value else "")
    except ProgrammingError:  # its text quotes the URL, password included
        raise ValueError("not a PostgreSQL URL") from None
    return value


def _are_areas(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(AREA.fullmatch(area) for area in value):
        raise ValueError("must be country codes such as ID, or number prefixes such as +62812")
    return value


def _are_prefixes(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(AREA.fullmatch(prefix) and prefix.startswith("+") for prefix in value):
        raise ValueError("must be number prefixes such as +88064")
    return value


def is_sender(value: str) -> str:
    """The address with an ASCII domain; the empty text as it is. Raises ValueError for another than a plain address."""
    if not value:
        return value
    try:
        address = validate_email(value, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        address = None
    if address is None or address.ascii_email is None:
        raise ValueError("must be an address with an ASCII local part, such as no-reply@example.com, without a name")
    return address.ascii_email


IsSender = AfterValidator(is_sender)
"""The address of a sender of mail; its domain becomes ASCII (Punycode)."""
Words = BeforeValidator(_words)
"""A list, separated by commas."""
Json = BeforeValidator(_json)
"""A JSON value."""
AreAreas = AfterValidator(_are_areas)
"""Country codes (ISO 3166-1 alpha-2, or 001 for numbers of no country) and number prefixes (E.164)."""
HeaderValue = Annotated[str, Field(pattern=r"^[ -~]{0,200}$")]
"""The value of a mail's header: printable ASCII."""
ArePrefixes = AfterValidator(_are_prefixes)
"""Number prefixes (E.164)."""
IsDatabase = AfterValidator(_is_database)
"""A connection URL that psycopg accepts."""


class Group(BaseModel):
    """A group of related settings; immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class FixedTax(Group):
    """A tax rate that was made at Stripe."""

    id: str = Field(min_length=1, description="id of the tax rate")
    percent: Decimal = Field(gt=0, lt=100, description="its percentage")
    inclusive: bool = Field(description="whether the price includes it")


def key_bytes(name: str, value: str) -> bytes:
    """Decode a key; raises ValueError, which names `name`, unless it is base64 of KEY_BYTES bytes."""
    try:
        key = b64decode(value, validate=True)
    except Base64Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"{name}: must be base64 of {KEY_BYTES} bytes")
    return key


def key_ring(name: str, value: SecretStr | None) -> dict[str, bytes]:
    """Decode `id:base64,…` to keys by id, in their order. Raises ValueError, which names `name`, when malformed."""
    if value is None:
        raise ValueError(f"{name}: is needed")
    entries = [entry.strip().partition(":") for entry in value.get_secret_value().split(",")]
    ring = {key_id: key_bytes(name, key) for key_id, _, key in entries}
    if "" in ring:
        raise ValueError(f"{name}: every key needs an id")
    if len(ring) < len(entries):
        raise ValueError(f"{name}: must be id:base64 entries with distinct ids")
    return ring
