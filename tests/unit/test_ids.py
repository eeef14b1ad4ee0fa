"""Ids that tell when they were made."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from server.ids import first_id, is_older, new_ids, parse_id

MADE = datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    "time_ordered",
    [  # the test vectors of RFC 9562, appendix A
        "c232ab00-9414-11ec-b3c8-9f6bdeced846",
        "1ec9414c-232a-6b00-b3c8-9f6bdeced846",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
    ],
)
def test_a_time_ordered_uuid_is_as_old_as_its_time(time_ordered: str) -> None:
    moments = [MADE - timedelta(days=1), MADE, MADE + timedelta(milliseconds=1)]
    assert [is_older(UUID(time_ordered), moment) for moment in moments] == [False, False, True]


def test_another_uuid_has_no_age() -> None:
    assert not any(is_older(other, MADE) for other in (uuid4(), UUID(int=0), UUID(int=2**128 - 1)))


def test_new_ids_are_uuids_of_version_7_and_of_their_moment() -> None:
    made = new_ids(1000, MADE)

    assert len(set(made)) == 1000
    assert {(each.version, each.variant) for each in made} == {(7, "specified in RFC 4122")}
    assert first_id(MADE) <= min(made) < max(made) < first_id(MADE + timedelta(milliseconds=1))
    assert len({each.int & 0x3F for each in made}) == 64  # its last bits are random
    assert len({each.int >> 64 & 0xFFF for each in made}) > 500


@pytest.mark.parametrize("text", ["017F22E2-79B0-7CC3-98C4-DC0C0C07398F", f"{UUID(int=0)}", f"{UUID(int=2**128 - 1)}"])
def test_a_parsed_id_is_the_uuid_of_its_text(text: str) -> None:
    parsed, expected = parse_id(text), UUID(text)

    assert parsed == expected
    assert hash(parsed) == hash(expected)
    assert (str(parsed), parsed.bytes, parsed.is_safe) == (text.lower(), expected.bytes, expected.is_safe)
