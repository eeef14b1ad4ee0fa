"""Limits of the project's files: their length, the length of a function, their names, and no work left for later."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 70
FOLDERS = ("server", "clients", "tests")
GENERATED = ("_pb2", "_pb2_grpc", "_pb")
BUILT = {"node_modules", "dist", "build"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}


def files(*suffixes: str) -> list[Path]:
    return [
        path
        for folder in FOLDERS
        for path in sorted((CHECKOUT / folder).rglob("*"))
        if path.suffix in suffixes
        and not path.stem.endswith(GENERATED)
        and not BUILT & set(path.relative_to(CHECKOUT).parts)
    ]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_projects_files_are_found() -> None:
    assert len(files(".py")) > 150
    assert len(files(".sql")) > 10


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {path.relative_to(CHECKOUT): len(path.read_text().splitlines()) for path in files(".py", ".sql", ".ts")}

    assert {path: length for path, length in lengths.items() if length > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_longer_than_70_lines() -> None:
    lengths = {
        f"{path.relative_to(CHECKOUT)}: {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in files(".py")
        for function in functions(path)
    }

    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == {}


def test_no_file_has_a_vague_name() -> None:
    assert [path for path in files(".py") if path.stem in VAGUE_NAMES] == []


def test_no_two_test_files_have_one_name() -> None:
    """Pytest imports them by their names alone, and collects nothing when two are the same."""
    names = Counter(path.name for path in files(".py") if path.name.startswith("test_"))

    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize("word", ["TODO", "FIXME", "# XXX", "NotImplementedError"])
def test_nothing_is_left_for_later(word: str) -> None:
    ours = Path(__file__)
    found = [path.relative_to(CHECKOUT) for path in files(".py", ".sql", ".proto", ".toml", ".ts") if path != ours]

    assert [path for path in found if word in (CHECKOUT / path).read_text()] == []
