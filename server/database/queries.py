"""Named queries: SQL lives in `.sql` files beside the Python that runs it, in blocks that begin with `-- name`."""

import re
from collections.abc import Iterator
from pathlib import Path

_BLOCK = re.compile(r"^-- (?P<name>[a-z_]+)\n(?P<text>.*?)(?=^-- [a-z_]+\n|\Z)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


class Queries:
    """The queries of one file, as attributes: `SQL.lock_accounts`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._texts = {
            match["name"]: _COMMENT.sub("", match["text"]).strip().removesuffix(";")
            for match in _BLOCK.finditer(path.read_text())
        }

    def __getattr__(self, name: str) -> str:
        if name not in self._texts:
            raise AttributeError(f"{self._path.name} has no query {name}")
        return self._texts[name]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._texts.items())


def load_queries(python_file: str) -> Queries:
    """The queries in the `.sql` file beside a Python file: pass `__file__`."""
    return Queries(Path(python_file).with_suffix(".sql"))
