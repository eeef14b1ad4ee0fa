"""Columns: the column lists that queries name, and rows packed column by column into array parameters.

Arrays are packed here in PostgreSQL's binary format (array_recv in its arrayfuncs.c). psycopg would dump a list element
by element through its general adapters, which took almost half of a large batch's time.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import attrgetter
from struct import Struct
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from psycopg import postgres
from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg.types.numeric import Int8BinaryDumper

from server.postgres.pipeline import Executor

Row = TypeVar("Row")

_HEADER = Struct(">iiIii")  # dimensions, has nulls, element type, length, index of the first element
_LENGTH = Struct(">i")
_BIGINT = Struct(">iq")
_NULL = _LENGTH.pack(-1)
_UUID_LENGTH = _LENGTH.pack(16)
_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Array:
    """An array parameter in PostgreSQL's binary format."""

    element: ClassVar[TypeInfo]
    __slots__ = ("data",)

    def __init__(self, elements: list[bytes], *, nulls: bool = False) -> None:
        """Each element is its packed bytes after a 4-byte length; a null is the length -1 alone."""
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
    """A text[] parameter. Packs each distinct text once, because most columns of a batch repeat few texts."""
    values = values if isinstance(values, Sequence) else list(values)
    packed = {value: _text(value) for value in set(values)}
    return _Texts([packed[value] for value in values] if len(packed) > 1 else [*packed.values()] * len(values))


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
    """A timestamptz[] parameter. Packs each distinct time once, as `texts` does."""
    values = values if isinstance(values, Sequence) else list(values)
    packed = {
        value: _NULL if value is None else _BIGINT.pack(8, (value - _ORIGIN) // _MICROSECOND) for value in set(values)
    }
    return _Times([packed[value] for value in values], nulls=None in packed)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, array: Array) -> bytes:
        """The bytes of the array."""
        return array.data


# Made once: psycopg keeps every class that was ever registered, and connections are replaced again and again.
_DUMPERS: Final = {
    kind: type(f"{kind.__name__}Dumper", (_ArrayDumper,), {"oid": kind.element.array_oid})
    for kind in (_Texts, _Uuids, _Bigints, _Byteas, _Times)
}


def register_types(context: AdaptContext) -> None:
    """Register the dumpers of Array parameters on a connection, and of whole numbers, which are always bigint.

    psycopg would choose the type by the value: three numbers of three sizes made 27 prepared statements of one text.
    """
    context.adapters.register_dumper(int, Int8BinaryDumper)
    for kind, dumper in _DUMPERS.items():
        context.adapters.register_dumper(kind, dumper)


class TableColumns:
    """A column list: the field names of a row class, in their order.

    A query that selects these columns returns rows that construct the class: `Delivery(*row)`.
    """

    def __init__(self, row_class: type) -> None:
        """`row_class` is a dataclass or a NamedTuple whose fields have the names of the columns."""
        names = getattr(row_class, "_fields", None) or [field.name for field in fields(row_class)]
        self.names = tuple(names)

    def __format__(self, table: str) -> str:
        return ", ".join(f"{table}.{name}" if table else name for name in self.names)


class SqlType(NamedTuple):
    """The SQL type of a column, and the function that packs its values into an array."""

    name: str
    pack: Callable[[Iterable[Any]], Array]


BIGINT: Final = SqlType("bigint", bigints)
BOOLEAN: Final = SqlType("boolean", texts)
"""Values are the texts `true` and `false`."""
BYTEA: Final = SqlType("bytea", byteas)
JSONB: Final = SqlType("jsonb", texts)
SMALLINT: Final = SqlType("smallint", bigints)
TEXT: Final = SqlType("text", texts)
TIMESTAMPTZ: Final = SqlType("timestamptz", times)
UUIDS: Final = SqlType("uuid", uuids)


class RowSource(Generic[Row]):
    """The source of the rows that statements write.

    In a query, `{name}` is the column list and `{name:rows}` the item after FROM. Several rows are sent as one array
    per column. A single row is sent as plain values: a lone send is a tenth faster without packing and unpacking
    arrays. `{name:row}` is the item after FROM for a single row only.
    """

    def __init__(
        self,
        values_of: Callable[[Sequence[Row]], Mapping[str, Sequence[Any]]] | None = None,
        /,
        **columns: SqlType | tuple[SqlType, Callable[[Row], Any]],
    ) -> None:
        """Each column has its type, or its type and a function from a row to the value.

        Without a function the value is the row's attribute of the column's name. `values_of` returns the values of
        several rows by column, instead.
        """
        self._types = {name: column if isinstance(column, SqlType) else column[0] for name, column in columns.items()}
        getters = {
            name: attrgetter(name) if isinstance(column, SqlType) else column[1] for name, column in columns.items()
        }
        self._values_of = values_of or (
            lambda rows: {name: [value(row) for row in rows] for name, value in getters.items()}
        )

    def __format__(self, form: str) -> str:
        if form == "rows":
            return f"unnest({', '.join(f'%({name})s::{kind.name}[]' for name, kind in self._types.items())})"
        if form == "row":
            return _for_one_row(format(self, "rows"))
        return ", ".join(f"{form}.{name}" if form else name for name in self._types)

    def only(self, *names: str) -> "RowSource[Row]":
        """The source with some of the columns, for a query: rows are written with the whole source."""
        return RowSource(self._values_of, **{name: self._types[name] for name in names})

    def values(self, row: Row) -> dict[str, Any]:
        """The parameters of `{name:row}`."""
        return {name: value for name, (value,) in self._values_of([row]).items()}

    async def write(self, connection: Executor, *queries: str, rows: Sequence[Row], **constants: Any) -> None:
        """Run statements that write the rows. `constants` are their further parameters, the same for every row.

        Each column is packed once for all statements.
        """
        values: dict[str, Any]
        if len(rows) == 1 and not any(
            "ANY(" in query for query in queries
        ):  # the ANY of a `-- shard` line needs an array
            queries = tuple(map(_for_one_row, queries))
            values = self.values(rows[0])
        else:
            values = {name: self._types[name].pack(column) for name, column in self._values_of(rows).items()}
        for query in queries:
            await connection.execute(query, values | constants)


@cache
def _for_one_row(query: str) -> str:
    """The query with plain values in place of the arrays of each `{name:rows}`."""
    return _ROWS.sub(lambda rows: f"(VALUES ({rows[1].replace('[]', '')}))", query)


_ROWS = re.compile(r"unnest\(((?:%\(\w+\)s::\w+\[\](?:, )?)+)\)")
