"""Named queries: SQL in a `.sql` file beside the Python that runs it, in blocks that begin with `-- name`.

Column lists are defined once, in Python. `{otp}` in a query is the list passed to `load_queries` as `otp`; `{otp:otps}`
is the same list with `otps.` before each name.

A line that ends in `-- shard` repeats a statement's organizations in the form from which Citus finds the shard: with
the name of the table, as after a JOIN … USING the column alone is the other side's. On plain PostgreSQL that line would
make each index look-up compare with every organization of the batch, so it is removed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

_BLOCK = re.compile(r"^-- (?P<name>[a-z_]+)\n(?P<text>.*?)(?=^-- [a-z_]+\n|\Z)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)
_SHARD_LINE = re.compile(r"^.* -- shard\n", re.MULTILINE)


class Queries:
    """The queries of one file, as attributes: `SQL.lock_accounts`."""

    name_shards: ClassVar[bool] = False
    """Whether queries include their `-- shard` lines; set with `use_shards`."""
    _all: ClassVar[list["Queries"]] = []

    def __init__(self, path: Path, **column_lists: object) -> None:
        """Read the file. Each of `column_lists` replaces its `{name}`. Raises KeyError for a name without a list."""
        self._path = path
        self._texts = {
            match["name"]: _COMMENT.sub("", match["text"]).strip().removesuffix(";").format(**column_lists)
            for match in _BLOCK.finditer(path.read_text())
        }
        Queries._all.append(self)
        self.set_attributes()

    @classmethod
    def use_shards(cls, *, name_shards: bool) -> None:
        """Include the `-- shard` lines in all queries, or remove them: the pool does, as it finds the database."""
        if name_shards is not cls.name_shards:
            cls.name_shards = name_shards
            for queries in cls._all:
                queries.set_attributes()

    def set_attributes(self) -> None:
        """Set each query's text as an attribute, with or without its `-- shard` lines."""
        for name, text in self:
            setattr(self, name, text)

    def __getattr__(self, name: str) -> str:
        raise AttributeError(f"{self._path.name} has no query {name}")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for name, text in self._texts.items():
            yield name, text if self.name_shards else _SHARD_LINE.sub("", text)


def load_queries(python_file: str, **column_lists: object) -> Queries:
    """Load the `.sql` file beside a Python file. Pass `__file__` and the column lists that the queries name."""
    return Queries(Path(python_file).with_suffix(".sql"), **column_lists)
