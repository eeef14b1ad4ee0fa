"""`distribute`: moves the tables of a plain database to the workers of Citus. And what `doctor` checks of a cluster."""

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import psycopg

from server.cli.database import existing_database
from server.environment import SettingsError, load_settings
from server.postgres.distribution import DISTRIBUTED, distribute, is_citus, undistributed_tables
from server.postgres.migrate import first_line
from server.postgres.pool import APPLICATION_ROLE
from server.settings import Settings

_SKEW_SECONDS: Final = 2.0
_OTHER_SESSIONS: Final = """
SELECT count(*)
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND application_name NOT LIKE 'citus_internal%'
"""
_SIZE: Final = """
SELECT pg_size_pretty(coalesce(sum(pg_total_relation_size(relid)), 0) + pg_total_relation_size(%(table)s::regclass))
FROM pg_partition_tree(%(table)s::regclass)
WHERE level > 0
"""
_PLACEMENTS: Final = """
SELECT node.nodename || ':' || node.nodeport, count(placement.shardid)
FROM pg_dist_node AS node
LEFT JOIN pg_dist_shard AS shard ON shard.logicalrelid = 'accounts'::regclass
LEFT JOIN pg_dist_placement AS placement ON placement.groupid = node.groupid AND placement.shardid = shard.shardid
WHERE node.noderole = 'primary' AND node.groupid <> 0
GROUP BY 1
ORDER BY 1
"""
_ON_WORKERS: Final = "SELECT nodename || ':' || nodeport, success, result FROM run_command_on_workers(%s)"
_CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())"
_RIGHTS: Final = f"SELECT pg_has_role(current_user, '{APPLICATION_ROLE}', 'USAGE')"
_MORE_RIGHTS: Final = """
SELECT rolsuper OR pg_has_role(current_user, (SELECT tableowner FROM pg_tables WHERE tablename = 'accounts'), 'USAGE')
FROM pg_roles
WHERE rolname = current_user
"""


def distribute_database() -> int:
    """`distribute`: distribute what is not yet, table by table, with the owner's URL; print each."""
    settings = load_settings(os.environ)
    owner = settings.database.owner_url or settings.database.url
    if owner is None:
        raise SettingsError("PULSA_DATABASE_URL: is needed: an embedded PostgreSQL has no Citus")
    with existing_database(settings, writes=True):
        pass
    try:
        with closing(psycopg.connect(owner.get_secret_value(), autocommit=True)) as connection:
            for line in _distribute(connection, settings.database.shards):
                print(line, flush=True)
    except psycopg.Error as error:
        raise SettingsError(f"distribute: {first_line(error)}; run it again, it goes on with the table") from None
    return 0


def _distribute(connection: psycopg.Connection, shards: int) -> Iterator[str]:
    if not is_citus(connection):
        raise SettingsError("PULSA_DATABASE_URL: the database has no extension citus")
    missing = undistributed_tables(connection)
    ((others,),) = connection.execute(_OTHER_SESSIONS).fetchall()
    if missing and others:
        raise SettingsError(f"stop every replica first: the database has {others} other sessions")
    for number, table in enumerate(distribute(connection, shards=shards), start=1):
        ((size,),) = connection.execute(_SIZE, {"table": table}).fetchall()
        yield f"{number} of {len(missing)}: {table}, {size}"
    yield f"{len(DISTRIBUTED)} tables are distributed"


def check_cluster(settings: Settings) -> str:
    """What `doctor` says of Citus. Raises ValueError for what keeps it from working, UserWarning for the rest."""
    with (
        existing_database(settings, writes=True) as url,
        closing(psycopg.connect(url, autocommit=True)) as connection,
    ):
        return check(connection) if is_citus(connection) else "none: one PostgreSQL has all tables"


def check(connection: psycopg.Connection) -> str:
    """As `check_cluster`, of a database with Citus."""
    if missing := undistributed_tables(connection):
        raise ValueError(f"not distributed: {', '.join(missing)}: run python -m server distribute")
    for node, success, result in connection.execute(_ON_WORKERS, [_RIGHTS]).fetchall():
        if not success:
            raise ValueError(f"{node}: {connection.info.user} cannot be used there: {result}")
        if result != "t":
            raise ValueError(f"{node}: {connection.info.user} is no member of {APPLICATION_ROLE}")
    skews = _skews(connection)
    if late := {node: skew for node, skew in skews.items() if abs(skew) > _SKEW_SECONDS}:
        raise ValueError("clocks differ from the coordinator's: " + _named(late))
    placements: dict[str, int] = dict(connection.execute(_PLACEMENTS).fetchall())
    shards = sum(placements.values())
    found = f"{shards} shards on {len(placements)} workers, clocks " + _named(skews)
    if idle := [node for node, count in placements.items() if not count]:
        raise UserWarning(f"{found}; without shards: {', '.join(idle)}: run SELECT citus_rebalance_start()")
    if connection.execute(_MORE_RIGHTS).fetchone() == (True,):
        raise UserWarning(f"{found}; {connection.info.user} may change the ledger: use a member of {APPLICATION_ROLE}")
    return found


def _skews(connection: psycopg.Connection) -> dict[str, float]:
    """By worker, in seconds: its clock minus the coordinator's."""
    ((now,),) = connection.execute(_CLOCK).fetchall()
    rows = connection.execute(_ON_WORKERS, [_CLOCK]).fetchall()
    return {node: float(result) - float(now) for node, success, result in rows if success}


def _named(skews: dict[str, float]) -> str:
    return ", ".join(f"{node} {skew:+.3f} s" for node, skew in skews.items())
