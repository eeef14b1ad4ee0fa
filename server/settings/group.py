"""What groups of settings have in common."""

import json
import re

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, SecretStr

_AREA = re.compile(r"[A-Z]{2}|001|\+[1-9][0-9]{0,14}")


def _words(value: object) -> object:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


def _is_database(value: SecretStr | None) -> SecretStr | None:
    try:
        conninfo_to_dict(value.get_secret_value() if value else "")
    except ProgrammingError:  # whose text quotes it, password and all
        raise ValueError("not a URL of PostgreSQL") from None
    return value


def _are_areas(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_AREA.fullmatch(area) for area in value):
        raise ValueError("must be countries such as ID, or beginnings of numbers such as +62812")
    return value


Words = BeforeValidator(_words)
"""Written with commas between them."""
Json = BeforeValidator(_json)
"""Written as JSON."""
AreAreas = AfterValidator(_are_areas)
"""Countries and beginnings of numbers."""
IsDatabase = AfterValidator(_is_database)
"""A URL that psycopg understands."""
ADDRESS = r"^\S+:\d{1,5}$"
"""Pattern of `host:port`."""


class Group(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
