"""Stripe's form encoding: `metadata[a]=1&expand[0]=x` becomes nested values; a name that nobody knows is refused."""

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from server.sandbox.stripe.refusal import Refusal

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
        place = root
        for key in keys[:-1]:
            place = place.setdefault(key or str(len(place)), {})
            if not isinstance(place, dict):
                raise Refusal(f"Invalid parameter: {name}", param=name)
        place[keys[-1] or str(len(place))] = value
    return {name: _listed(value) for name, value in root.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_listed(value[key]) for key in sorted(value, key=int)]
    return {key: _listed(inner) for key, inner in value.items()}


def check(given: Mapping[str, Any], *, schema: Schema, required: Iterable[str] = ()) -> dict[str, Any]:
    """The given parameters with their types, or the refusal that Stripe would answer."""
    for name in given:
        if name not in schema:
            raise Refusal(f"Received unknown parameter: {name}", code="parameter_unknown", param=name)
    for name in required:
        if name not in given:
            raise Refusal(f"Missing required param: {name}.", code="parameter_missing", param=name)
    return {name: schema[name](name, value) for name, value in given.items()}


def text(name: str, value: Any) -> str:
    """A string that is not empty: Stripe takes an empty one as an attempt to unset."""
    if not isinstance(value, str):
        raise Refusal(f"Invalid string: {name}", param=name)
    if not value:
        raise Refusal(f"You passed an empty string for '{name}'.", code="parameter_invalid_empty", param=name)
    return value


def whole(name: str, value: Any) -> int:
    """A whole number."""
    if not isinstance(value, str) or not re.fullmatch(r"-?\d{1,18}", value):
        raise Refusal(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
    return int(value)


def flag(name: str, value: Any) -> bool:
    """`true` or `false`."""
    if value not in {"true", "false"}:
        raise Refusal(f"Invalid boolean: {value}", param=name)
    return bool(value == "true")


def decimal(name: str, value: Any) -> Decimal:
    """A decimal with at most 12 places."""
    try:
        number = Decimal(text(name, value))
    except InvalidOperation:
        raise Refusal(f"Invalid decimal: {value}", param=name) from None
    if not number.is_finite() or -int(number.as_tuple().exponent) > _DECIMAL_PLACES:
        raise Refusal(f"Invalid decimal: must have at most {_DECIMAL_PLACES} places", param=name)
    return number


def texts(name: str, value: Any) -> list[str]:
    """A list of strings."""
    if not isinstance(value, list):
        raise Refusal(f"Invalid array: {name}", param=name)
    return [text(name, item) for item in value]


def nested(name: str, value: Any) -> Any:
    """An object or a list of objects, taken as it is."""
    if not isinstance(value, dict | list):
        raise Refusal(f"Invalid object: {name}", param=name)
    return value


def metadata(name: str, value: Any) -> dict[str, str]:
    """At most 50 entries, names up to 40 and values up to 500 characters; an empty value unsets."""
    if value == "":
        return {}
    entries = nested(name, value)
    if not isinstance(entries, dict) or len(entries) > _METADATA_ENTRIES:
        raise Refusal(f"Metadata can have up to {_METADATA_ENTRIES} keys.", param=name)
    for key, entry in entries.items():
        if len(key) > _METADATA_NAME_LENGTH or not isinstance(entry, str) or len(entry) > _METADATA_VALUE_LENGTH:
            raise Refusal("Metadata names have up to 40 and values up to 500 characters.", param=f"{name}[{key}]")
    return entries


def choice(*allowed: str) -> Reader:
    """One of these words."""

    def read(name: str, value: Any) -> str:
        if text(name, value) not in allowed:
            raise Refusal(f"Invalid {name}: must be one of {', '.join(allowed)}", param=name)
        return str(value)

    return read


def span(name: str, value: Any) -> dict[str, int]:
    """A time filter: one Unix time, or limits named gt, gte, lt, lte."""
    if isinstance(value, str):
        moment = whole(name, value)
        return {"gte": moment, "lte": moment}
    limits = nested(name, value)
    if not isinstance(limits, dict) or set(limits) - {"gt", "gte", "lt", "lte"}:
        raise Refusal(f"Invalid time filter: {name}", param=name)
    return {key: whole(f"{name}[{key}]", limit) for key, limit in limits.items()}
