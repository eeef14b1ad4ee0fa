"""The map of shards: asks once for each organization, and follows shards that move or are split."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from server.postgres.migrate import Migration
from server.postgres.shards import Shard, ShardMap

HASHES = {"acme": -5, "bob": 7, "cap": 90}
SHARDS = [Shard(101, -100, "one", 5432), Shard(102, 0, "two", 5432)]


@dataclass
class Database:
    """Tells what organizations are hashed to."""

    asked: list[list[str]] = field(default_factory=list)

    async def read_hashes(self, organization_ids: Sequence[str]) -> list[tuple[str, int]]:
        self.asked.append(sorted(organization_ids))
        return [(organization_id, HASHES[organization_id]) for organization_id in organization_ids]


def map_of(database: Database, shards: Sequence[Shard] = SHARDS) -> ShardMap:
    shard_map = ShardMap(database.read_hashes)
    shard_map.replace(shards)
    return shard_map


async def test_without_shards_every_organization_is_on_one_and_nobody_is_asked() -> None:
    database = Database()
    shard_map = map_of(database, [])
    assert (shard_map.find("acme"), await shard_map.ask("bob")) == (0, 0)
    assert shard_map.locate("acme") is None
    assert not shard_map.is_distributed
    assert database.asked == []


async def test_organizations_that_are_asked_for_at_once_are_one_question() -> None:
    database = Database()
    shard_map = map_of(database)
    assert shard_map.find("acme") is None
    assert await asyncio.gather(*map(shard_map.ask, ["acme", "bob", "acme"])) == [101, 102, 101]
    assert await shard_map.ask("cap") == 102
    assert shard_map.find("acme") == 101
    assert database.asked == [["acme", "bob"], ["cap"]]


async def test_a_shard_that_was_split_is_followed_without_a_question() -> None:
    database = Database()
    shard_map = map_of(database)
    await asyncio.gather(*map(shard_map.ask, HASHES))
    shard_map.replace([SHARDS[0], Shard(103, 0, "two", 5432), Shard(104, 50, "three", 5432)])
    assert [shard_map.find(organization_id) for organization_id in HASHES] == [101, 103, 104]
    assert shard_map.locate("cap") == Shard(104, 50, "three", 5432)
    assert len(database.asked) == 1


@pytest.mark.parametrize("invalid", ["", "a b", "nul\0", "x" * 65])
async def test_the_database_is_never_asked_for_what_is_no_organization(invalid: str) -> None:
    database = Database()
    assert await map_of(database).ask(invalid) == 101
    assert database.asked == []


async def test_a_failed_question_fails_those_who_asked_and_is_asked_again() -> None:
    database = Database()
    shard_map = map_of(database)
    unknown = asyncio.create_task(shard_map.ask("dan"))
    known = asyncio.create_task(shard_map.ask("acme"))
    await asyncio.wait([unknown, known])
    assert isinstance(unknown.exception(), KeyError)
    assert isinstance(known.exception(), KeyError)
    assert await shard_map.ask("acme") == 101


def test_the_body_of_a_function_is_part_of_one_statement() -> None:
    text = "CREATE TABLE one ();\nCREATE FUNCTION f() AS $$\nBEGIN;\nEND;\n$$;\nSELECT 1;\n"
    statements = [statement.strip() for statement in Migration(1, "x", text).statements]
    assert statements == ["CREATE TABLE one ()", "CREATE FUNCTION f() AS $$\nBEGIN;\nEND;\n$$", "SELECT 1"]
