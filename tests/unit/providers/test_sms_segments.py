"""Segments of text messages, as carriers count them."""

import pytest

from server.providers.sms_segments import Encoding, Segments, segments


@pytest.mark.parametrize(
    ("text", "encoding", "count"),
    [
        ("", Encoding.GSM_7, 1),
        ("a" * 160, Encoding.GSM_7, 1),
        ("a" * 161, Encoding.GSM_7, 2),
        ("a" * 306, Encoding.GSM_7, 2),
        ("a" * 307, Encoding.GSM_7, 3),
        ("é" * 160, Encoding.GSM_7, 1),
        ("a" * 158 + "€", Encoding.GSM_7, 1),
        ("a" * 159 + "€", Encoding.GSM_7, 2),
        # The euro sign would lie across the border: it moves to the second message whole, and 153 others to a third.
        ("a" * 152 + "€" + "a" * 152, Encoding.GSM_7, 3),
        ("ó" + "a" * 69, Encoding.UCS_2, 1),
        ("ó" + "a" * 70, Encoding.UCS_2, 2),
        ("ó" * 134, Encoding.UCS_2, 2),
        ("ó" * 135, Encoding.UCS_2, 3),
        ("😀" * 35, Encoding.UCS_2, 1),
        ("😀" * 36, Encoding.UCS_2, 2),
        ("😀" * 67, Encoding.UCS_2, 3),
    ],
)
def test_a_text_has_as_many_segments_as_carriers_bill(text: str, encoding: Encoding, count: int) -> None:
    assert segments(text) == Segments(encoding, count)
