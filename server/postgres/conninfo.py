"""Where a database is and how long it may take: connection URLs with bounds, and each host of a URL."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_KEEPALIVE: Final = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3}
"""Of idle connections, in seconds; those in use have a shorter bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long each thing may take, in seconds."""

    connection: float = 2.0
    """Waiting for a free connection, and opening one."""
    transaction: float = 2.0
    """The use of one connection by a call or a batch; longer, and the connection is closed."""
    lock: float = 1.0
    """Waiting for a row that another transaction has locked; longer, and the call raises AccountBusy."""
    job: float = 300.0
    """The use of one connection by a periodic job or a command, and any one statement."""
    idle_in_transaction: float = 5.0
    """A transaction without a statement, as of a process that was frozen; longer, and PostgreSQL ends its session."""


def with_timeouts(url: str, timeouts: Timeouts) -> str:
    """The URL with bounds for what it leaves open. Of several hosts it leads to the one that takes writes."""
    given = conninfo_to_dict(url)
    bounds: dict[str, str | int] = {
        "connect_timeout": max(2, round(timeouts.connection)),  # libpq takes whole seconds, at least 2
        "tcp_user_timeout": round(1000 * timeouts.connection),
    }
    if "," in str(given.get("host") or given.get("hostaddr") or ""):
        bounds["target_session_attrs"] = "read-write"
    bounded = make_conninfo("", **{**_KEEPALIVE, **bounds, **given})
    return make_conninfo("", **conninfo_to_dict(bounded))  # in libpq's order: the pool compares such texts


def each_host(conninfo: str) -> Iterator[str]:
    """The URL for each of its hosts, with the others left out."""
    given = conninfo_to_dict(conninfo)
    lists = {name: str(given[name]).split(",") for name in ("host", "hostaddr", "port") if given.get(name)}
    count = max(map(len, lists.values()), default=1)
    if count == 1:
        yield conninfo
        return
    for number in range(count):
        one = {name: values[number if len(values) > 1 else 0] for name, values in lists.items()}
        # The probe asks the session. libpq would believe what PgBouncer remembers of its first one, even after a
        # promotion.
        yield make_conninfo("", **{**given, **one, "target_session_attrs": "any"})


def address_of(conninfo: str) -> tuple[str, int]:
    """The host and the port of a URL's first host."""
    given = conninfo_to_dict(next(each_host(conninfo)))
    return str(given.get("host") or ""), int(given.get("port") or 5432)


def milliseconds(seconds: float) -> str:
    """As PostgreSQL's settings take a time."""
    return str(round(1000 * seconds))
