"""The settings of the server's sessions: on plain PostgreSQL, and where the database has Citus."""

from collections.abc import Mapping
from itertools import chain
from typing import Final

from psycopg import AsyncConnection

from server.postgres.pipeline import PipelineConnection, Row

# A pipeline's plans are made once and kept, possibly since the tables were empty. A plan that reads a whole table is
# cheap then and very expensive later. Every statement of the server finds its rows by key, so only plans that use an
# index are allowed.
_PLANNING: Final = {
    "plan_cache_mode": "force_generic_plan",  # a plan per execution makes a tiny batch three times as expensive
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
_SETTINGS: Final = {
    "jit": "off",
    "datestyle": "ISO, YMD",  # of times that statements turn into text
    **_PLANNING,
}
_CITUS_SETTINGS: Final = {
    # Citus connects to its workers as the current role, and pulsa_application may not log in: the login has to inherit
    # its rights.
    "role": "none",
    # A generic plan of most statements would find no shard. Citus sees to it that "auto" never takes such a one.
    "plan_cache_mode": "auto",
    "citus.propagate_set_commands": "local",  # what SET LOCAL sets, also on the workers
}
_HAS_CITUS: Final = "EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"


async def set_up_session(connection: PipelineConnection, settings: Mapping[str, str]) -> bool:
    """Set the settings of a new session; returns whether its database has Citus."""
    has_citus = await _set(connection, {**_SETTINGS, **settings})
    if has_citus:
        await _set(connection, _CITUS_SETTINGS)
        connection.set_local = f"SET LOCAL lock_timeout TO {settings['lock_timeout']}"
    return has_citus


async def allow_all_plans(connection: AsyncConnection[Row]) -> None:
    """Allow every kind of plan in the rest of this transaction, made for each statement's values: for audits."""
    for name in _PLANNING:
        value = "force_custom_plan" if name == "plan_cache_mode" else "on"
        await connection.execute("SELECT set_config(%s, %s, true)", [name, value])


async def _set(connection: PipelineConnection, settings: Mapping[str, str]) -> bool:
    query = f"SELECT {', '.join([_HAS_CITUS, *['set_config(%s, %s, false)'] * len(settings)])}"
    row = await (await connection.execute(query, list(chain(*settings.items())))).fetchone()
    return bool(row and row[0])
