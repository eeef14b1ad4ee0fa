"""Databases of tests: each is a copy of a migrated template, on one server or on every node of a Citus cluster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count

import psycopg
from psycopg.conninfo import make_conninfo

from server.postgres.conninfo import address_of
from server.postgres.migrate import migrate

TEMPLATE = "pulsa_template"
_SHARDS = 4
_NODES = "SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' AND groupid <> 0 ORDER BY nodeid"
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
)
_SCHEMA = """
WITH tables AS (
    SELECT oid, relname, relowner, relacl, reloptions, relpartbound FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
)
SELECT md5(string_agg(part, ' ' ORDER BY part)) FROM (
    SELECT concat('class', tables) AS part FROM tables
    UNION ALL SELECT concat('attribute', each.xmin, attrelid, attnum) FROM pg_attribute AS each
        JOIN tables ON tables.oid = attrelid
    UNION ALL SELECT concat('statistic', starelid) FROM pg_statistic JOIN tables ON tables.oid = starelid
    UNION ALL SELECT concat('constraint', xmin, oid) FROM pg_constraint
    UNION ALL SELECT concat('trigger', xmin, oid) FROM pg_trigger
    UNION ALL SELECT concat('function', xmin, oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT concat('namespace', xmin, oid) FROM pg_namespace WHERE nspname NOT LIKE 'pg_%'
    UNION ALL SELECT concat('extension', xmin, oid) FROM pg_extension
    UNION ALL SELECT concat('setting', xmin, setdatabase) FROM pg_db_role_setting
    UNION ALL SELECT concat('database', datallowconn, datacl) FROM pg_database WHERE datname = current_database()
    UNION ALL SELECT concat('migration', each) FROM schema_migrations AS each
    UNION ALL SELECT concat('erased', each) FROM erased_destinations AS each
)
"""
"""A digest of all that a test may have changed but the rows that it has written."""
_WRITTEN = """
SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND pg_relation_size(oid) > 0
    AND relname NOT IN ('schema_migrations', 'erased_destinations')
"""


@dataclass
class Databases:
    """Makes databases from the template."""

    nodes: Sequence[str]
    """The URLs of the servers; a cluster's coordinator comes first."""
    template: str
    prefix: str = "test"
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _schema: str | None = None
    """The digest of the template's schema."""
    _emptied: list[str] = field(default_factory=list)

    @contextmanager
    def new(self) -> Iterator[str]:
        """Yield the URL of a database that is as the template."""
        name = self._emptied.pop() if self._emptied else self._create()
        try:
            yield url_of(self.nodes[0], name)
        finally:
            if len(self.nodes) == 1 and self._empty(name):
                self._emptied.append(name)
            else:
                self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _create(self) -> str:
        name = f"{self.prefix}_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        if len(self.nodes) == 1 and not self._schema:
            with psycopg.connect(url_of(self.nodes[0], name)) as connection:
                self._schema = _value(connection, _SCHEMA)
        return name

    def _execute(self, statement: str) -> None:
        for node in self.nodes:
            with psycopg.connect(node, autocommit=True) as connection:
                connection.execute(statement.encode())

    def _empty(self, name: str) -> bool:
        """Remove all rows, in a quarter of the time of a new copy. False if more than rows was changed."""
        try:
            with psycopg.connect(url_of(self.nodes[0], name), autocommit=True) as connection:
                connection.execute(_END_SESSIONS, [name])
                if _value(connection, _SCHEMA) != self._schema:
                    return False
                if tables := _value(connection, _WRITTEN):
                    connection.execute("SET session_replication_role = replica")  # no trigger
                    connection.execute(f"TRUNCATE {tables} CASCADE".encode())
                connection.execute("SELECT pg_stat_reset()")
                return True
        except psycopg.OperationalError:
            return False


def _value(connection: psycopg.Connection, query: str) -> str | None:
    row = connection.execute(query.encode()).fetchone()
    return str(row[0]) if row and row[0] else None


@contextmanager
def cluster_databases(coordinator: str) -> Iterator[Databases]:
    """Make a template on the cluster of a coordinator, whose database has the extension and knows the workers.

    Each process of the tests has its own. The login must be a superuser, and may connect from every node to every other
    without a password.
    """
    process = os.getpid()
    template = f"{TEMPLATE}_{process}"
    nodes = _nodes_of(coordinator)
    with new_cluster_database(nodes, template) as url:
        with _changing_roles(coordinator):
            migrate(url, shards=_SHARDS)
        for node in nodes:
            with psycopg.connect(node, autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {template} ALLOW_CONNECTIONS false".encode())
                connection.execute(_END_SESSIONS, [template])  # also Citus's own, which would come back
        yield Databases(nodes, template, prefix=f"test_{process}")


@contextmanager
def new_cluster_database(nodes: Sequence[str], name: str) -> Iterator[str]:
    """Make an empty database with the extension on every node, whose coordinator knows the workers; yield its URL."""
    with ExitStack() as stack:
        for node in nodes:
            connection = stack.enter_context(psycopg.connect(node, autocommit=True))
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
            connection.execute(f"CREATE DATABASE {name}".encode())
            stack.callback(connection.execute, f"DROP DATABASE {name} WITH (FORCE)".encode())
            with psycopg.connect(url_of(node, name), autocommit=True) as made:
                made.execute("CREATE EXTENSION citus")
        add_nodes(url_of(nodes[0], name), nodes)
        yield url_of(nodes[0], name)


def add_nodes(url: str, nodes: Sequence[str]) -> None:
    """Tell the database at the coordinator where the nodes are."""
    with _changing_roles(nodes[0]), psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT citus_set_coordinator_host(%s, %s)", address_of(nodes[0]))
        for worker in nodes[1:]:
            connection.execute("SELECT citus_add_node(%s, %s)", address_of(worker))


@contextmanager
def _changing_roles(coordinator: str) -> Iterator[None]:
    """One process after another: `migrate` makes roles, and a node that is added gets all of them."""
    with psycopg.connect(coordinator, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(27)")
        yield


def _nodes_of(coordinator: str) -> list[str]:
    with psycopg.connect(coordinator) as connection:
        workers = connection.execute(_NODES).fetchall()
    return [coordinator, *(make_conninfo(coordinator, host=host, port=port) for host, port in workers)]


def url_of(url: str, database: str) -> str:
    """The URL of another database of the same server."""
    return make_conninfo(url, dbname=database)
