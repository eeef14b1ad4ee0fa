"""Sources of bearer tokens."""

from collections.abc import Callable
from pathlib import Path


def token_from_file(path: Path) -> Callable[[], str]:
    """Return a function that reads the token from the file for each call: to rotate the token, replace the file."""
    return lambda: path.read_text(encoding="utf-8").strip()
