"""The code blocks of a Markdown file, and what its author says is to be done with each.

A comment in the line before a block of sh, python, ts, ruby or java says how it is tested:

    <!-- test: run -->                       the commands end with exit code 0
    <!-- test: prints "TEXT" -->             so they do, and print this
    <!-- test: background until "TEXT" -->   they run until the end of the document; the next block waits for this
    <!-- test: file NAME -->                 the block is the content of this file, in the folder of the commands
    <!-- test: no, REASON -->                not tested, for this reason
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TESTED_LANGUAGES: Final = frozenset({"sh", "python", "ts", "ruby", "java"})

_BLOCK: Final = re.compile(
    r"^(?:<!-- test: (?P<directive>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_DIRECTIVE: Final = re.compile(r'(?P<kind>run|prints|background until|file|no,) ?"?(?P<argument>.*?)"?')


@dataclass(frozen=True, slots=True)
class Block:
    """One code block."""

    line: int
    language: str
    text: str
    kind: str
    """`run`, `prints`, `background until`, `file` or `no,`; empty without a comment."""
    argument: str


def code_blocks(document: Path) -> Iterator[Block]:
    """The blocks in a language that is tested. Raises ValueError for a comment of another form."""
    text = document.read_text()
    for match in _BLOCK.finditer(text):
        if match["language"] not in TESTED_LANGUAGES:
            continue
        line = text.count("\n", 0, match.start()) + 1
        directive = _DIRECTIVE.fullmatch(match["directive"] or "")
        if match["directive"] and directive is None:
            raise ValueError(f"{document}:{line}: not a test comment: {match['directive']}")
        kind, argument = (directive["kind"], directive["argument"]) if directive else ("", "")
        yield Block(line, match["language"], match["text"], kind, argument)
