"""Outages of one database of the shared PostgreSQL server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"


async def end_sessions(database_url: str, *, but: int = 0) -> None:
    """End every session of the database, as a restart of PostgreSQL does; not the one with the process id `but`."""
    async with await _connect_beside(database_url) as server:
        await server.execute(_END_SESSIONS, [conninfo_to_dict(database_url)["dbname"], but])


@asynccontextmanager
async def database_away(database_url: str) -> AsyncIterator[None]:
    """Inside, the database has no session and refuses new ones."""
    async with no_new_sessions(database_url):
        await end_sessions(database_url)
        yield


@asynccontextmanager
async def no_new_sessions(database_url: str) -> AsyncIterator[None]:
    """Inside, the database refuses new sessions and keeps those it has, as when it has too many."""
    await _allow_connections(database_url, allowed=False)
    try:
        yield
    finally:
        await _allow_connections(database_url, allowed=True)


async def _allow_connections(database_url: str, *, allowed: bool) -> None:
    name = sql.Identifier(str(conninfo_to_dict(database_url)["dbname"]))
    async with await _connect_beside(database_url) as server:
        await server.execute(
            sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(name, sql.SQL("true" if allowed else "false"))
        )


async def _connect_beside(database_url: str) -> AsyncConnection[tuple[Any, ...]]:
    """A connection to the same server that is no session of the database."""
    return await psycopg.AsyncConnection.connect(make_conninfo(database_url, dbname="postgres"), autocommit=True)
