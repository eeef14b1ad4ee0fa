"""Columns as array parameters, packed whole in PostgreSQL's binary format (array_recv in its arrayfuncs.c).

psycopg dumps a list one element at a time through its general adapters; that took almost half of a large batch's time.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import ClassVar
from uuid import UUID

from psycopg import postgres
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

_HEADER = Struct(">iiIii")  # dimensions, whether there are nulls, the type, how many, the index of the first
_LENGTH = Struct(">i")
_BIGINT = Struct(">iq")
_NULL = _LENGTH.pack(-1)
_UUID_LENGTH = _LENGTH.pack(16)
_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Array:
    """An array that is ready to be sent."""

    element: ClassVar[TypeInfo]
    __slots__ = ("data",)

    def __init__(self, elements: list[bytes], *, nulls: bool = False) -> None:
        """Elements with their lengths before them; a null is a length of -1."""
        header = _HEADER.pack(1, nulls, self.element.oid, len(elements), 1)
        self.data = header + b"".join(elements)


class _Texts(Array):
    element = postgres.types["text"]


class _Uuids(Array):
    element = postgres.types["uuid"]


class _Bigints(Array):
    element = postgres.types["int8"]


class _Byteas(Array):
    element = postgres.types["bytea"]


class _Times(Array):
    element = postgres.types["timestamptz"]


def texts(values: Iterable[str]) -> Array:
    """A text[] parameter. Most columns of a batch hold the same few texts: each is packed once."""
    values = list(values)
    packed = {value: _text(value) for value in set(values)}
    return _Texts([packed[value] for value in values])


def uuids(values: Iterable[UUID | None]) -> Array:
    """A uuid[] parameter."""
    elements = [_NULL if value is None else _UUID_LENGTH + value.int.to_bytes(16, "big") for value in values]
    return _Uuids(elements, nulls=_NULL in elements)


def bigints(values: Iterable[int]) -> Array:
    """A bigint[] parameter."""
    return _Bigints([_BIGINT.pack(8, value) for value in values])


def byteas(values: Iterable[bytes | None]) -> Array:
    """A bytea[] parameter."""
    elements = [_NULL if value is None else _LENGTH.pack(len(value)) + value for value in values]
    return _Byteas(elements, nulls=_NULL in elements)


def times(values: Iterable[datetime | None]) -> Array:
    """A timestamptz[] parameter."""
    elements = [_NULL if value is None else _BIGINT.pack(8, (value - _ORIGIN) // _MICROSECOND) for value in values]
    return _Times(elements, nulls=_NULL in elements)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, array: Array) -> bytes:
        """The array as it is sent."""
        return array.data


def register_arrays(context: AdaptContext) -> None:
    """Let a connection take arrays as parameters."""
    for kind in (_Texts, _Uuids, _Bigints, _Byteas, _Times):
        dumper = type(f"{kind.__name__}Dumper", (_ArrayDumper,), {"oid": kind.element.array_oid})
        context.adapters.register_dumper(kind, dumper)
