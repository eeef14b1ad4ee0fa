"""What a database error means: one table from SQLSTATE to what is repeated, what the caller hears, what is dropped.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout


@dataclass(frozen=True, slots=True)
class Meaning:
    """What follows from an error."""

    repeat: bool = False
    """The transaction was undone, or may have been: idempotent work is run again."""
    probe: bool = False
    """The database may be away: it is probed."""
    lost: bool = False
    """The connection, and probably its neighbours, cannot be used any more: new ones are opened."""
    unavailable: bool = True
    """The caller hears DATABASE_UNAVAILABLE, once repeats have not helped. Otherwise the error is a fault of ours."""


LOST: Final = Meaning(repeat=True, probe=True, lost=True)
SILENT: Final = Meaning(probe=True, lost=True)  # not repeated: the caller has waited for long enough
NO_CONNECTION: Final = Meaning(probe=True)
WORKER_LOST: Final = Meaning()
"""A worker of Citus is lost, and our connection to the database is not. Not repeated: others wait meanwhile."""
BUSY: Final = Meaning()
AGAIN: Final = Meaning(repeat=True)
FAULT: Final = Meaning(unavailable=False)

MEANINGS: Final[dict[str, Meaning]] = {
    "08": LOST,  # connection exceptions
    "0A000": BUSY,  # not supported: by Citus, for organizations of two shards after theirs was split a moment ago
    "25006": LOST,  # read-only transaction: a primary that became a standby; new connections find the new primary
    "25P02": LOST,  # in a failed transaction: the connection is not where we think it is
    "25P03": LOST,  # idle-in-transaction session timeout
    "25P04": LOST,  # transaction timeout
    "26000": LOST,  # the prepared statement does not exist: a pooler gave us another server connection
    "42P05": LOST,  # the prepared statement exists: the same
    "40": AGAIN,  # serialization failures and deadlocks
    "53": BUSY,  # insufficient resources: disk full, out of memory, too many connections
    "55P03": BUSY,  # lock timeout
    "57014": BUSY,  # statement timeout
    "57P": LOST,  # the server is stopping or starting, or an administrator ended the session
    "58": BUSY,  # an error of the system under PostgreSQL
    "XX000": AGAIN,  # internal error; Citus gives it for a worker that is lost at COMMIT
}
"""By SQLSTATE or its beginning; the longest that fits counts."""


def meaning_of(error: BaseException) -> Meaning:
    """What follows from an error of psycopg or of its pool."""
    if isinstance(error, PoolTimeout):
        return NO_CONNECTION
    if isinstance(error, PoolClosed):  # it was replaced while the caller waited
        return AGAIN
    if isinstance(error, TimeoutError):
        return SILENT
    if not isinstance(error, psycopg.Error):
        return FAULT
    if error.sqlstate is None:  # libpq's own, such as a refused connection; or a fault of ours in the use of psycopg
        return LOST if isinstance(error, psycopg.OperationalError) else FAULT
    return _meaning_of_answer(error.sqlstate, error.diag.severity_nonlocalized)


def _meaning_of_answer(sqlstate: str, severity: str | None) -> Meaning:
    if sqlstate.startswith("08") and severity == "ERROR":  # of our own connection it would be FATAL
        return WORKER_LOST
    return next((MEANINGS[sqlstate[:length]] for length in (5, 3, 2) if sqlstate[:length] in MEANINGS), FAULT)
