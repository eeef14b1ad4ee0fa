"""Ids that tell when they were made."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from server.ids import is_older

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
