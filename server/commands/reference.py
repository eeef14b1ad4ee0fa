"""`reference`: keeps the tables and the state diagram of a Markdown file those of the code."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.credits.top_up_states import TRANSITIONS
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
    """The text with each section that the code can write replaced by what the code says."""
    contents = {
        "settings": _table(_settings()),
        "permissions": _table(_permissions()),
        "top-up-states": _state_diagram(),
    }
    for name, content in contents.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if begin and end:
            text = before + begin + content + end + after
    return text


def _table(rows: Iterator[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _state_diagram() -> str:
    lines = [f"    {state} --> {to}" for state, next_states in TRANSITIONS.items() for to in sorted(next_states)]
    ends = [f"    {state} --> [*]" for state, next_states in TRANSITIONS.items() if not next_states]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> CREATING", *lines, *ends, "```", ""])


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
