"""Stripe's form encoding: `metadata[a]=1&expand[0]=x` becomes nested values; an unknown name is refused."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any

from server.sandbox.stripe.errors import ApiError

Reader = Callable[[str, Any], Any]
Schema = Mapping[str, Reader]

_METADATA_ENTRIES = 50
_METADATA_NAME_LENGTH = 40
_METADATA_VALUE_LENGTH = 500
_DECIMAL_PLACES = 12


def decode(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The nested form of a query or a form body. Values stay strings; index keys become lists."""
    root: dict[str, Any] = {}
    for name, value in pairs:
        head, bracket, rest = name.partition("[")
        keys = [head, *re.findall(r"\[([^\]]*)\]", bracket + rest)]
        target = root
        for key in keys[:-1]:
            target = target.setdefault(key or str(len(target)), {})
            if not isinstance(target, dict):
                raise ApiError(f"Invalid parameter: {name}", param=name)
        target[keys[-1] or str(len(target))] = value
    return {name: _with_lists(value) for name, value in root.items()}


def _with_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_with_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _with_lists(inner) for key, inner in value.items()}


def validate(given: Mapping[str, Any], *, schema: Schema, required: Iterable[str] = ()) -> dict[str, Any]:
    """The given parameters with their types, or the error that Stripe would answer."""
    for name in given:
        if name not in schema:
            raise ApiError(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)
    for name in required:
        if name not in given:
            raise ApiError(f"Missing required param: {name}.", code="parameter_missing", param=name)
    return {name: schema[name](name, value) for name, value in given.items()}


def string(name: str, value: Any) -> str:
    """A string that is not empty: Stripe takes an empty one as an attempt to unset."""
    if not isinstance(value, str):
        raise ApiError(f"Invalid string: {name}", param=name)
    if not value:
        raise ApiError(f"You passed an empty string for '{name}'.", code="parameter_invalid_empty", param=name)
    return value


def integer(name: str, value: Any) -> int:
    """A whole number."""
    if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value):
        raise ApiError(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
    return int(value)


def boolean(name: str, value: Any) -> bool:
    """`true` or `false`."""
    if value not in {"true", "false"}:
        raise ApiError(f"Invalid boolean: {value}", param=name)
    return bool(value == "true")


def decimal(name: str, value: Any) -> Decimal:
    """A decimal with at most 12 places."""
    try:
        number = Decimal(string(name, value))
    except InvalidOperation:
        raise ApiError(f"Invalid decimal: {value}", param=name) from None
    if not number.is_finite() or -int(number.as_tuple().exponent) > _DECIMAL_PLACES:
        raise ApiError(f"Invalid decimal: must have at most {_DECIMAL_PLACES} places", param=name)
    return number


def strings(name: str, value: Any) -> list[str]:
    """A list of strings."""
    if not isinstance(value, list):
        raise ApiError(f"Invalid array: {name}", param=name)
    return [string(name, item) for item in value]


def nested(name: str, value: Any) -> Any:
    """An object or a list of objects, unchecked."""
    if not isinstance(value, dict | list):
        raise ApiError(f"Invalid object: {name}", param=name)
    return value


def metadata(name: str, value: Any) -> dict[str, str]:
    """At most 50 entries, names up to 40 and values up to 500 characters; an empty value unsets."""
    if value == "":
        return {}
    entries = nested(name, value)
    if not isinstance(entries, dict) or len(entries) > _METADATA_ENTRIES:
        raise ApiError(f"Metadata can have up to {_METADATA_ENTRIES} keys.", param=name)
    for key, entry in entries.items():
        if len(key) > _METADATA_NAME_LENGTH or not isinstance(entry, str) or len(entry) > _METADATA_VALUE_LENGTH:
            raise ApiError("Metadata names have up to 40 and values up to 500 characters.", param=f"{name}[{key}]")
    return entries


def choice(*allowed: str) -> Reader:
    """One of these strings."""

    def read(name: str, value: Any) -> str:
        if string(name, value) not in allowed:
            raise ApiError(f"Invalid {name}: must be one of {', '.join(allowed)}", param=name)
        return str(value)

    return read


def time_filter(name: str, value: Any) -> dict[str, int]:
    """A time filter: one Unix time, or limits named gt, gte, lt, lte."""
    if isinstance(value, str):
        moment = integer(name, value)
        return {"gte": moment, "lte": moment}
    limits = nested(name, value)
    if not isinstance(limits, dict) or set(limits) - {"gt", "gte", "lt", "lte"}:
        raise ApiError(f"Invalid time filter: {name}", param=name)
    return {key: integer(f"{name}[{key}]", limit) for key, limit in limits.items()}


def choice_of_readers(*readers: Reader) -> Reader:
    """The first of these readers that accepts the value."""

    def read(name: str, value: Any) -> Any:
        for reader in readers[:-1]:
            with suppress(ApiError):
                return reader(name, value)
        return readers[-1](name, value)

    return read


def unset(name: str, value: Any) -> str:
    """An empty string, which unsets."""
    if value != "":
        raise ApiError(f"Invalid value: {name}", param=name)
    return ""
