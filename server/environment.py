"""Reads settings from environment variables. Every error is one line that names the variable."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from server.settings import Settings

PREFIX = "PULSA_"
_FILE = "_FILE"
_TYPE_NAMES: Mapping[object, str] = {
    Path: "path", SecretStr: "secret", str: "text", bool: "true or false", int: "whole number", float: "number"
}  # fmt: skip


Value = TypeVar("Value")


class SettingsError(Exception):
    """A setting is wrong or missing; the message is one line that names it."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting as an environment variable."""

    group: str
    """Empty for a setting without a group."""
    field: str
    type: str
    default: str
    """Empty when the default is unset."""
    description: str

    @property
    def name(self) -> str:
        """The name of the environment variable."""
        return PREFIX + "_".join(filter(None, [self.group, self.field])).upper()


def load_settings(environment: Mapping[str, str], defaults: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of the environment; `defaults` replace the values that it leaves out or empty.

    Raises SettingsError for an invalid value, an unreadable file, or a variable that is no setting.
    """
    values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in (defaults or {}).items()}
    fields = {variable.name: variable for variable in variables()}
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX) and value}
    for name, value in _with_files(given, fields):
        if name not in fields:
            raise SettingsError(f"{name}: no such setting")
        group, field = fields[name].group, fields[name].field
        (values.setdefault(group, {}) if group else values)[field] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"][:2]).upper()
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}: {message[:1].lower()}{message[1:]}") from None


def variables() -> Iterator[Variable]:
    """Yield every setting, in the order of declaration."""
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            for inner, inner_field in group.model_fields.items():
                yield _variable(name, inner, inner_field)
        else:
            yield _variable("", name, field)


def _variable(group: str, name: str, field: FieldInfo) -> Variable:
    default = field.default
    if isinstance(default, tuple):
        default = ",".join(default)
    if isinstance(default, SecretStr) or default is None or default == {}:
        default = ""
    return Variable(group, name, _type_name(field.annotation), str(default), field.description or "")


def _type_name(annotation: object) -> str:
    """Return the name of the type for operators."""
    options = [option for option in get_args(annotation) if option is not NoneType]
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, options))
    if get_origin(annotation) in {Union, UnionType}:
        return _type_name(options[0])
    if get_origin(annotation) is tuple:
        return f"list of {_type_name(options[0])}"
    return _TYPE_NAMES.get(annotation, "JSON")


def _with_files(given: Mapping[str, str], names: Container[str]) -> Iterator[tuple[str, str]]:
    for name, value in given.items():
        if name in names or not name.endswith(_FILE):
            yield name, value
            continue
        try:
            yield name.removesuffix(_FILE), Path(value).read_text().strip()
        except OSError as error:
            raise SettingsError(f"{name}: cannot be read: {error.strerror}") from None


@contextmanager
def naming_setting(name: str) -> Iterator[None]:
    """Turn an OSError or ValueError of the block into a SettingsError that names the setting."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SettingsError(f"{name}: {error}") from error


def required(value: Value | None, name: str) -> Value:
    """Return the value. Raises SettingsError when it is None."""
    if value is None:
        raise SettingsError(f"{name}: is needed")
    return value
