"""README.md and docs/: what `make generate` writes is current, and every code block says how it is tested."""

import re
from pathlib import Path

import pytest

from server.cli.reference import with_current_tables
from tests.docs.blocks import code_blocks

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?://)(?P<file>[^)#]*)(?:#(?P<anchor>[^)]*))?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_generated_tables_are_current(document: Path) -> None:
    text = document.read_text()

    assert with_current_tables(text) == text, "run make generate"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_code_block_says_how_it_is_tested(document: Path) -> None:
    assert [block.line for block in code_blocks(document) if not block.kind] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    for link in LINK.finditer(document.read_text()):
        file = document.parent / link["file"] if link["file"] else document
        assert file.exists(), link[0]
        if link["anchor"]:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert link["anchor"] in anchors, link[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_no_section_is_there_twice(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^## .+$", text, re.MULTILINE)

    assert sorted(headings) == sorted(set(headings))


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 180


def test_every_log_event_of_level_warning_or_above_is_explained() -> None:
    explained = (CHECKOUT / "docs" / "operations.md").read_text()
    logged = {
        event
        for path in (CHECKOUT / "server").rglob("*.py")
        if "sandbox" not in path.parts
        for event in re.findall(r'log\.(?:warning|error|exception|critical)\(\s*"([^"]+)"', path.read_text())
    }

    assert len(logged) > 30
    assert sorted(event for event in logged if f"| `{event}` |" not in explained) == []
