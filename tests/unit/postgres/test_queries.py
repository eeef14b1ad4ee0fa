"""Named queries: comments are removed, and each column list is filled into its places."""

from pathlib import Path
from typing import NamedTuple

import pytest

from server.postgres.columns import TEXT, UUIDS, RowSource, TableColumns
from server.postgres.queries import Queries

SQL = """
-- find
-- A comment is no part of the query.
SELECT {otp}
FROM otps
WHERE otp_id = ANY(%(otp_ids)s);

-- join
SELECT {otp:otps}
FROM otps JOIN deliveries USING (otp_id);

-- insert
INSERT INTO otps ({row})
SELECT {row:source}
FROM {row:rows} AS source ({row});
"""


class Otp(NamedTuple):
    otp_id: str
    purpose: str


def queries(folder: Path, text: str = SQL, **column_lists: object) -> Queries:
    file = folder / "otp.sql"
    file.write_text(text)
    return Queries(file, **column_lists)


def test_a_column_list_is_filled_in_with_and_without_a_table(tmp_path: Path) -> None:
    otp = TableColumns(Otp)
    row: RowSource[Otp] = RowSource(otp_id=UUIDS, purpose=TEXT)

    found = dict(queries(tmp_path, otp=otp, row=row))

    assert found == {
        "find": "SELECT otp_id, purpose\nFROM otps\nWHERE otp_id = ANY(%(otp_ids)s)",
        "join": "SELECT otps.otp_id, otps.purpose\nFROM otps JOIN deliveries USING (otp_id)",
        "insert": "INSERT INTO otps (otp_id, purpose)\nSELECT source.otp_id, source.purpose\n"
        "FROM unnest(%(otp_id)s::uuid[], %(purpose)s::text[]) AS source (otp_id, purpose)",
    }


def test_a_query_is_an_attribute_of_its_name(tmp_path: Path) -> None:
    found = queries(tmp_path, "-- find\nSELECT {otp} FROM otps;\n", otp=TableColumns(Otp))

    assert found.find == "SELECT otp_id, purpose FROM otps"
    with pytest.raises(AttributeError, match=r"otp\.sql has no query seek"):
        _ = found.seek


@pytest.mark.parametrize("place", ["{delivery}", "{delivery:deliveries}"])
def test_a_place_without_a_column_list_raises_a_key_error(tmp_path: Path, place: str) -> None:
    with pytest.raises(KeyError, match="delivery"):
        queries(tmp_path, f"-- find\nSELECT {place} FROM deliveries;\n", otp=TableColumns(Otp))
