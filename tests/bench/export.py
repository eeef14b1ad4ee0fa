"""`python -m tests.bench.export`: exports a large ledger, beside PostgreSQL's own COPY TO of the same rows.

Each of the two is timed several times in turn. Checks that a repeat and a resumed export are the same, byte for byte,
and end with the account's balance; shows the memory; and measures ExportLedger over gRPC.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import psycopg
from pulsa.credit.v1.credit_service_pb2 import ExportLedgerRequest
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub

from server.postgres.migrate import migrate
from tests.bench.environment import FILLING, POSTGRES, ROOT, BenchmarkEnvironment, benchmark_environment

DATABASE = "exported"
# A year of sends, on the same wall clock as a real ledger's: 12 months, and one top-up by hand at the beginning.
FILL = """
INSERT INTO accounts (
    organization_id, available_credits, last_sequence, low_balance_threshold, window_start_time, create_time
)
SELECT 'acme', %(entries)s::bigint, %(entries)s::bigint, 0, now(), now();
INSERT INTO ledger_entries (
    organization_id, sequence, kind, credits, balance_after, reference_id, reason, created_by, create_time
)
SELECT 'acme', number, CASE WHEN number = 1 THEN 'ADJUSTMENT' ELSE 'SEND' END,
    CASE WHEN number = 1 THEN 2 * %(entries)s::bigint - 1 ELSE -1 END, 2 * %(entries)s::bigint - number,
    gen_random_uuid(), CASE WHEN number = 1 THEN 'the first, "by hand"' ELSE '' END,
    CASE WHEN number = 1 THEN 'ann' ELSE '' END,
    date_trunc('year', now()) - interval '1 year' + interval '1 year' * (number::float8 / (%(entries)s + 1))
FROM generate_series(1, %(entries)s::bigint) AS number
"""
COPY = """
COPY (
    SELECT kind, sequence, create_time, credits, balance_after, reference_id, reason, created_by
    FROM ledger_entries
    WHERE organization_id = 'acme'
    ORDER BY sequence
) TO STDOUT (FORMAT csv)
"""


def main() -> int:
    """Fill, measure, check and print; 1 when the export is slower than a third of COPY TO."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the filled database stays for another run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pulsa-export-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # PostgreSQL runs as another user when this is root
        if not (folder / "postgres").exists():
            with benchmark_environment(folder, FILLING) as filling:
                fill(filling, arguments.entries)
        with benchmark_environment(folder, POSTGRES) as environment:
            return measure(environment, Path(temporary), arguments.entries, arguments.rounds)


def fill(environment: BenchmarkEnvironment, entries: int) -> None:
    """Add an account with so many entries."""
    with psycopg.connect(environment.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}".encode())
    migrate(environment.database_url(DATABASE))
    with psycopg.connect(environment.database_url(DATABASE), autocommit=True) as connection:
        for statement in FILL.split(";"):
            connection.execute(statement.encode(), {"entries": entries})
        connection.execute("VACUUM (ANALYZE, FREEZE) ledger_entries")
        connection.execute("CHECKPOINT")


def measure(environment: BenchmarkEnvironment, folder: Path, entries: int, rounds: int) -> int:
    """Print the figures; 1 when the export is too slow."""
    copies, exports, memories = [], [], []
    digests = set()
    copy(environment)  # warms the caches of PostgreSQL and of the system
    for number in range(rounds):
        copies.append(copy(environment))
        file = folder / f"{number}.csv"
        seconds, memory = export(environment, file)
        exports.append(seconds)
        memories.append(memory)
        digests.add(digest_of(file))
    first, partly = folder / "0.csv", folder / "partly.csv"
    with first.open("rb") as opened:
        content = opened.read(first.stat().st_size // 2)
        opened.seek(-200, os.SEEK_END)
        last_line = opened.read().decode().splitlines()[-1]
    # As an export that was interrupted in the middle leaves it.
    (folder / f"{partly.name}.acme...partial").write_bytes(content)
    resumed, _ = export(environment, partly)
    digests.add(digest_of(partly))
    rate, memory = over_grpc(environment, entries)
    ratio = statistics.median(one / other for one, other in zip(copies, exports, strict=True))
    print(f"COPY TO: {statistics.median(copies):.1f} s; export: {statistics.median(exports):.1f} s")  # noqa: T201
    print(f"export, of COPY TO's speed: {ratio:.2f}; {entries / statistics.median(exports):,.0f} entries/s")  # noqa: T201
    print(f"the second half, resumed: {resumed:.1f} s; all {rounds + 1} files are equal: {len(digests) == 1}")  # noqa: T201
    print(f"the last line: {last_line}; the account has {entries} credits")  # noqa: T201
    print(f"the most memory of a command: {max(memories):.0f} MiB")  # noqa: T201
    print(f"over gRPC: {rate:,.0f} entries/s; the server's peak memory grew by {memory:.0f} MiB")  # noqa: T201
    holds = len(digests) == 1 and last_line.split(",")[5] == str(entries) and ratio >= 1 / 3
    return 0 if holds else 1


def copy(environment: BenchmarkEnvironment) -> float:
    """The seconds of COPY TO, whose output is read and thrown away."""
    with psycopg.connect(environment.database_url(DATABASE)) as connection, connection.cursor() as cursor:
        began = time.monotonic()
        with cursor.copy(COPY.encode()) as rows:
            while rows.read():
                pass
        return time.monotonic() - began


def export(environment: BenchmarkEnvironment, file: Path) -> tuple[float, float]:
    """The seconds of the command, from its start to its end, and the most memory that it had, in MiB."""
    began = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "server", "export", "acme", str(file)],
        env=os.environ | environment.settings(DATABASE),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return time.monotonic() - began, usage.ru_maxrss / 1024


def over_grpc(environment: BenchmarkEnvironment, entries: int) -> tuple[float, float]:
    """Entries per second of ExportLedger, and by how much the server's peak memory grew, in MiB."""
    with environment.server("pulsa", DATABASE) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        before = peak_mebibytes(server.pid)
        began = time.monotonic()
        stream = CreditServiceStub(channel).ExportLedger(
            ExportLedgerRequest(organization_id="acme"),
            metadata=(("authorization", f"Bearer {environment.token}"),),
        )
        exported = [message.exported_entries for message in stream][-1]
        seconds = time.monotonic() - began
        if exported != entries:
            raise RuntimeError(f"{exported} entries of {entries}")
        return entries / seconds, peak_mebibytes(server.pid) - before


def peak_mebibytes(pid: int) -> float:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def digest_of(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
