"""Pages: a token gives its position back, anything else is refused, and a page fits in a message."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pulsa.otp.v1.otp_pb2 import Otp
from pulsa.otp.v1.otp_service_pb2 import ListOtpsResponse

from server.api.pagination import PageTokens, write_page
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


@pytest.mark.parametrize(("letters", "pages"), [(1, 2), (200, 2), (200_000, 10)])
def test_a_page_ends_before_the_default_limit_of_grpc_and_the_next_one_goes_on(letters: int, pages: int) -> None:
    # Ten values of 200 characters of four bytes are the largest metadata that a request may have.
    metadata = {f"{number:040}": "\U0001f511" * letters for number in range(10)}
    rows = list(range(501 if pages < 10 else pages))
    sizes: list[int] = []
    shown: list[int] = []

    def write(message: Otp, row: int) -> None:
        message.send_count = row
        message.metadata.update(metadata)

    after: int | None = -1
    while after is not None:
        response = ListOtpsResponse()
        after = write_page(response.otps, rows[after + 1 :], write, size=500)
        shown += [otp.send_count for otp in response.otps]
        sizes.append(response.ByteSize())

    assert (shown, len(sizes)) == (rows, pages)
    assert max(sizes) < 4 * 1024 * 1024 or pages == len(rows)
