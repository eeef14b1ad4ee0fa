"""Named queries: SQL lives in `.sql` files beside the Python that runs it, in blocks that begin with `-- name`.

A line that ends in `-- shard` repeats which organizations a statement is about in the form that Citus needs to find
the shard. On plain PostgreSQL it would make each index look-up compare with every organization of the batch, so it is
left out there.
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
    """Set once at start, when the database is Citus."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._texts = {
            match["name"]: _COMMENT.sub("", match["text"]).strip().removesuffix(";")
            for match in _BLOCK.finditer(path.read_text())
        }
        self._without_shards = {name: _SHARD_LINE.sub("", text) for name, text in self._texts.items()}

    def __getattr__(self, name: str) -> str:
        texts = self._texts if self.name_shards else self._without_shards
        if name not in texts:
            raise AttributeError(f"{self._path.name} has no query {name}")
        return texts[name]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter((self._texts if self.name_shards else self._without_shards).items())


def load_queries(python_file: str) -> Queries:
    """The queries in the `.sql` file beside a Python file: pass `__file__`."""
    return Queries(Path(python_file).with_suffix(".sql"))
