"""Finds the work of periodic jobs on the shards of every organization, also while a worker of Citus is lost.

On plain PostgreSQL, and while all workers answer, it is one statement. Citus asks the shards in parallel, and fails all
of it when one does not answer. Then every worker is asked by itself for what its shards have.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncClientCursor

from server.errors import DatabaseUnavailable
from server.postgres.pipeline import Row
from server.postgres.pool import Connection, Pool, acquire
from server.postgres.sqlstates import WORKER_LOST, meaning_of

_FIND_SHARDS: Final = """
SELECT node.nodename, node.nodeport, shard.shardminvalue, shard.logicalrelid::text,
    shard_name(shard.logicalrelid, shard.shardid)
FROM pg_dist_shard AS shard
JOIN pg_dist_placement AS placement USING (shardid)
JOIN pg_dist_node AS node ON node.groupid = placement.groupid AND node.noderole = 'primary'
WHERE shard.logicalrelid = ANY(%s::regclass[])
"""
_ASK_WORKERS: Final = "SELECT node_name, node_port, success, result FROM master_run_on_worker(%s, %s, %s, true)"
_TABLE: Final = re.compile(r"(?<=^FROM )\w+(?=$| AS )|(?<=^    FROM )\w+(?=$| AS )", re.MULTILINE)
"""Of a query, or of a subquery in it: its columns are named without the table, or by an alias."""

_log = structlog.get_logger(__name__)

Parse = Callable[[Any], Any]


def _unchanged(value: Any) -> Any:
    return value


class Found(NamedTuple):
    """The rows of a query."""

    rows: list[Row]
    is_complete: bool
    """False when a worker was lost, whose rows are missing."""


async def find_keys(pool: Pool, query: str, values: Mapping[str, Any]) -> list[tuple[str, UUID]]:
    """The rows of `find_everywhere`, an organization_id and a UUID each."""
    found = await find_everywhere(pool, query, values, parse=UUID)
    return [(row[0], row[1]) for row in found.rows]


async def find_everywhere(
    pool: Pool, query: str, values: Mapping[str, Any], *, parse: Parse = _unchanged, seconds: float | None = None
) -> Found:
    """The rows of a query of one table, or of several that it joins by organization; without those of lost workers.

    `parse` makes a row's last value of PostgreSQL's JSON. Of each shard that is asked by itself there are rows up to
    the query's LIMIT. `seconds` is as for `acquire`.
    """
    try:
        async with acquire(pool, seconds=seconds) as connection:
            return Found(await (await connection.execute(query, values)).fetchall(), is_complete=True)
    except DatabaseUnavailable:
        if not pool.shards.is_distributed:
            raise
    async with acquire(pool, seconds=seconds) as connection:
        return await _ask_each_worker(connection, query, values, parse)


async def find_on_connection(
    connection: Connection, query: str, values: Mapping[str, Any], *, parse: Parse = _unchanged
) -> Found:
    """As `find_everywhere`, on a connection."""
    try:
        return Found(await (await connection.execute(query, values)).fetchall(), is_complete=True)
    except psycopg.Error as error:
        if meaning_of(error) is not WORKER_LOST:
            raise
    return await _ask_each_worker(connection, query, values, parse)


async def _ask_each_worker(connection: Connection, query: str, values: Mapping[str, Any], parse: Parse) -> Found:
    text = AsyncClientCursor(connection).mogrify(query, values)
    shards: dict[tuple[str, int, str], dict[str, str]] = defaultdict(dict)
    for *place, table, shard in await (await connection.execute(_FIND_SHARDS, [_TABLE.findall(query)])).fetchall():
        shards[*place][table] = shard
    commands: dict[tuple[str, int], list[str]] = defaultdict(list)
    for (host, port, _), names in shards.items():
        commands[host, port].append(f"({_on_shard(text, names)})")
    asked = [
        [host for host, _ in commands],
        [port for _, port in commands],
        [
            f"SELECT json_agg(found) FROM ({' UNION ALL '.join(parts)}) AS found"  # noqa: S608 - our own query
            for parts in commands.values()
        ],
    ]
    found, is_complete = list[Row](), True
    for host, port, success, result in await (await connection.execute(_ASK_WORKERS, asked)).fetchall():
        if success:
            for row in json.loads(result or "[]"):
                *others, last = row.values()
                found.append((*others, parse(last)))
        else:
            is_complete = False
            _log.warning("a worker of Citus is lost", host=host, port=port)
    return Found(found, is_complete)


def _on_shard(query: str, names: Mapping[str, str]) -> str:
    """The query of a shard's own tables, whose names there are given."""
    return _TABLE.sub(lambda table: names[table[0]], query)
