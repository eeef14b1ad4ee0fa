"""Page tokens: each gives its position back, and anything else is refused."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.api.pagination import PageTokens
from server.errors import InvalidFields

NEWEST = (1 << 63) - 1
LEDGER = PageTokens("ListLedgerEntries", "acme", newest=NEWEST)


@given(st.integers(0, NEWEST))
def test_a_token_gives_its_position_back(position: int) -> None:
    token = LEDGER.write(position)
    assert LEDGER.read(token) == position
    assert re.fullmatch(r"[\w-]{32}", token)


def test_no_token_is_the_newest_position() -> None:
    assert LEDGER.read("") == NEWEST


@pytest.mark.parametrize(
    "other",
    [
        PageTokens("ListTopUps", "acme", newest=NEWEST),
        PageTokens("ListLedgerEntries", "other", newest=NEWEST),
        PageTokens("ListLedgerEntries", "acme", "OPEN", newest=NEWEST),
        PageTokens("ListLedgerEntriesacme", newest=NEWEST),
    ],
)
def test_a_token_of_another_list_is_refused(other: PageTokens) -> None:
    with pytest.raises(InvalidFields) as refused:
        LEDGER.read(other.write(5))
    assert [violation.field for violation in refused.value.violations] == ["page_token"]


def test_a_position_that_no_row_can_have_is_refused() -> None:
    beyond = PageTokens("ListLedgerEntries", "acme", newest=1 << 100).write(NEWEST + 1)
    with pytest.raises(InvalidFields):
        LEDGER.read(beyond)


@given(st.text(min_size=1, max_size=256))
@example(LEDGER.write(7) + "=")
@example(LEDGER.write(7) + "\n")
@example(LEDGER.write(7)[:-1])
@example(LEDGER.write(7) + "AAAA" * 50)
@example("=")
@example("ä")
def test_any_other_text_is_refused(token: str) -> None:
    with pytest.raises(InvalidFields):
        LEDGER.read(token)
