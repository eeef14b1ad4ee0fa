"""Databases of tests: each is a copy of a migrated template, on one server or on every node of a Citus cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from server.postgres.conninfo import address_of
from server.postgres.migrate import migrate

T = TypeVar("T")

TEMPLATE = "pulsa_template"
_SHARDS = 4
_NODES = "SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' AND groupid <> 0 ORDER BY nodeid"
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
)
_END_OTHERS = f"{_END_SESSIONS} AND backend_type NOT LIKE 'Citus%%'"
"""All but Citus's own, which hold no locks and would come back."""
_ON_SHARDS = """
SET citus.override_table_visibility = off;
SET citus.enable_manual_changes_to_shards = on
"""
"""A session at a node of a cluster sees the shards there, and may write to them."""
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
    {others}
) AS parts
"""
"""A digest of all that a test may have changed but the rows that it has written."""
_STORED = """
    UNION ALL SELECT concat('migration', each) FROM schema_migrations AS each
    UNION ALL SELECT concat('erased', each) FROM erased_destinations AS each
"""
"""The rows of the template, at the coordinator."""
_PLACES = """
    UNION ALL SELECT concat('node', each) FROM pg_dist_node AS each
    UNION ALL SELECT concat('placement', each) FROM pg_dist_placement AS each
"""
"""Where a node of a cluster believes the shards to be."""
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
    _schemas: list[str] = field(default_factory=list)
    """The digest of the template at each node."""
    _emptied: list[str] = field(default_factory=list)

    @contextmanager
    def new(self) -> Iterator[str]:
        """Yield the URL of a database that is as the template."""
        name = self._emptied.pop() if self._emptied else self._create()
        try:
            yield url_of(self.nodes[0], name)
        finally:
            if all(self._empty(node, name) for node in self.nodes):  # the coordinator first, as it writes to the others
                self._emptied.append(name)
            else:
                self._drop(name)

    def close(self) -> None:
        """Drop the databases that wait for a test."""
        while self._emptied:
            self._drop(self._emptied.pop())

    def _create(self) -> str:
        name = f"{self.prefix}_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        if not self._schemas:
            self._schemas = self._on_each_node(lambda node: self._schema(node, name))
        return name

    def _drop(self, name: str) -> None:
        for attempts_left in reversed(range(10)):
            try:
                self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
                break
            except psycopg.errors.ObjectInUse:  # Citus of another node has connected meanwhile
                if not attempts_left:
                    raise

    def _execute(self, statement: str) -> None:
        def execute(node: str) -> None:
            with psycopg.connect(node, autocommit=True) as connection:
                connection.execute(statement.encode())

        self._on_each_node(execute)

    def _on_each_node(self, function: Callable[[str], T]) -> list[T]:
        """What the function returns for the URL of each node; it runs for all of them at once."""
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            return list(threads.map(function, self.nodes))

    @property
    def _is_cluster(self) -> bool:
        return len(self.nodes) > 1

    def _schema(self, node: str, name: str) -> str:
        with self._connect(node, name) as connection:
            return self._digest(connection, node)

    def _digest(self, connection: psycopg.Connection, node: str) -> str:
        others = (_STORED if node == self.nodes[0] else "") + (_PLACES if self._is_cluster else "")
        return str(_value(connection, _SCHEMA.format(others=others)))

    @contextmanager
    def _connect(self, node: str, name: str) -> Iterator[psycopg.Connection]:
        with psycopg.connect(url_of(node, name), autocommit=True) as connection:
            if self._is_cluster:
                connection.execute(_ON_SHARDS.encode())
            yield connection

    def _empty(self, node: str, name: str) -> bool:
        """Remove all rows at a node. False if more than rows was changed.

        It takes a quarter of the time of a new copy, and a tenth on a cluster.
        """
        try:
            with self._connect(node, name) as connection:
                connection.execute(_END_OTHERS, [name])
                if self._digest(connection, node) != self._schemas[self.nodes.index(node)]:
                    return False
                if tables := _value(connection, _WRITTEN):
                    connection.execute("SET session_replication_role = replica")  # no trigger
                    connection.execute("SET lock_timeout = '5s'")
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
        databases = Databases(nodes, template, prefix=f"test_{process}")
        yield databases
        databases.close()


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
