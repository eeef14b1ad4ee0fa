"""Writes rows with statements that take each column as an array: many rows as arrays, and a single one as it is.

A lone send is a tenth faster when nobody makes arrays of its rows and opens them again.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from server.database.arrays import Array
from server.database.pipeline import Statements

Row = TypeVar("Row")
Columns = Mapping[str, tuple[Callable[[Iterable[Any]], Array], Callable[[Row], Any]]]
"""For each parameter of a statement what packs it, and which value of a row it is: of an enum its value."""

_UNNEST = re.compile(r"FROM unnest\(((?:\s*%\(\w+\)s::\w+\[\],?)+\s*)\)")


async def write_rows(
    connection: Statements, query: str, columns: Columns[Row], rows: Sequence[Row], **constants: Any
) -> None:
    """Run a statement whose rows come `FROM unnest(…)` of these columns; every row has the same constants."""
    values: dict[str, Any]
    if len(rows) == 1 and (for_one_row := _for_one_row(query)):
        query, row = for_one_row, rows[0]
        values = {name: of(row) for name, (_, of) in columns.items()}
    else:
        values = {name: pack(map(of, rows)) for name, (pack, of) in columns.items()}
    await connection.execute(query, values | constants)


@cache
def _for_one_row(query: str) -> str:
    """The statement for a row of plain values; empty when it needs an array all the same, as on Citus."""
    rewritten, count = _UNNEST.subn(lambda match: f"FROM (VALUES ({match[1].replace('[]', '')}))", query)
    return rewritten if count == 1 and "ANY(" not in rewritten else ""
