"""What groups of settings have in common."""

import json

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _words(value: object) -> object:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


Words = BeforeValidator(_words)
"""Written with commas between them."""
Json = BeforeValidator(_json)
"""Written as JSON."""


class Group(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
