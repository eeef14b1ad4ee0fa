"""Where a caller's bearer token comes from."""

from collections.abc import Callable
from pathlib import Path


def token_from_file(path: Path) -> Callable[[], str]:
    """A provider that reads the file at each call, so that whoever rotates the token only replaces the file."""
    return lambda: path.read_text(encoding="utf-8").strip()
