"""`reference`: generates the tables and the state diagram of the documentation from the code."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.api.permissions import PERMISSIONS
from server.credits.top_ups.state_machine import TRANSITIONS
from server.environment import variables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        help="Markdown files with sections such as <!-- settings --> … <!-- /settings -->",
    )


def reference(arguments: argparse.Namespace) -> None:
    """Rewrite the sections of each file that changed."""
    files: Sequence[Path] = arguments.files
    for file in files:
        text = file.read_text()
        if (current := with_current_tables(text)) != text:
            file.write_text(current)


def with_current_tables(text: str) -> str:
    """Return the text with its sections `settings`, `permissions` and `top-up-states` generated from the code."""
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
