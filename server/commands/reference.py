"""`reference`: keeps the tables of a Markdown file those of the code."""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.environment import variables
from server.rpc.permissions import PERMISSIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which file."""
    parser.add_argument("file", type=Path, help="a file with sections such as <!-- settings --> … <!-- /settings -->")


def reference(arguments: argparse.Namespace) -> None:
    """Rewrite the file's sections."""
    file: Path = arguments.file
    file.write_text(with_current_tables(file.read_text()))


def with_current_tables(text: str) -> str:
    """The text with each of its sections that has a table here replaced by that table."""
    for name, rows in (("settings", _settings()), ("permissions", _permissions())):
        section = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = section.sub(rf"\1{_table(rows)}\2", text)
    return text


def _table(rows: Iterator[Sequence[str]]) -> str:
    """The rows in Markdown, as a replacement for re.sub."""
    return "".join(f"| {' | '.join(row)} |\n" for row in rows).replace("\\", "\\\\")


def _settings() -> Iterator[Sequence[str]]:
    yield "Setting", "Type", "Default", "Meaning"
    yield "---", "---", "---", "---"
    for variable in variables():
        default = f"`{variable.default}`" if variable.default else ""
        yield f"`{variable.name}`", variable.type, default, variable.description


def _permissions() -> Iterator[Sequence[str]]:
    yield "Service", "Rpc", "Permission"
    yield "---", "---", "---"
    for service, rpcs in PERMISSIONS.items():
        for rpc, permission in rpcs.items():
            yield service.rpartition(".")[2], rpc, f"`{permission}`"
