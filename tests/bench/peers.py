"""`python -m tests.bench.peers`: debits per second of other ledgers, beside SendOtp and batches of 1,000, in rounds.

On the same PostgreSQL, one after the other. Each ledger has as many sessions as the server. A debit of theirs is a
debit alone; an OTP of ours is also validated, limited, sent and its outcome stored, behind gRPC.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from server.postgres import embedded
from tests.bench import calls
from tests.bench.batches import Way, calls_of, open_batches, spread, table
from tests.bench.environment import ROOT, BenchmarkEnvironment, benchmark_environment

PYTHON = ROOT / "build/peers/bin/python"
"""Of the environment with the packages: `make build/peers/ready`."""
SESSIONS = 8
"""As PULSA_DATABASE_CONNECTIONS."""
MANY = 1000
"""Accounts, when debits are spread over them."""
_DATABASE = "peers"
_PACKAGES = Path(__file__).with_name("packages.py")
_OURS = ("send_otp", "batch_of_1000")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another ledger, and what it reached in each round."""

    hot_accounts: int
    """1 for a debit of one account, 2 for a transfer from one to another."""
    run: Callable[[int, float], float]
    """Debits so many accounts for so many seconds; returns debits per second."""
    hot: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)

    def measure(self, seconds: float) -> None:
        """One round."""
        self.hot.append(self.run(self.hot_accounts, seconds))
        self.spread.append(self.run(MANY, seconds))


def measure(
    environment: BenchmarkEnvironment, *, rounds: int, seconds: float, pgledger: Path | None = None
) -> dict[str, object]:
    """The figures of the rounds, for JSON: debits per second, and the ratios of each round. Names what is left out."""
    with psycopg.connect(environment.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {_DATABASE}".encode())
    url = environment.database_url(_DATABASE)
    left_out: dict[str, str] = {}
    peers = dict(_open_peers(url, pgledger, left_out))
    with open_batches(environment, database="beside_peers") as batches:
        pulsa = batches.ways["send_otp"].server
        of_many = Way(pulsa, calls_of(pulsa, calls.SEND_OTP, calls.spread_sends, environment.token))
        ways = {**{name: batches.ways[name] for name in _OURS}, "send_otp_spread": of_many}
        batches.warm()
        for _ in range(rounds):
            for way in ways.values():
                batches.measure(way, seconds)
            for peer in peers.values():
                peer.measure(seconds)
    rates = {name: way.figures["per_second"] for name, way in ways.items()}
    return {
        "per_second": {name: spread(values) for name, values in rates.items()}
        | {name: {"hot": spread(peer.hot), "over_1000_accounts": spread(peer.spread)} for name, peer in peers.items()},
        "batch_of_1000_of": {
            name: {
                "hot": _ratio(rates["batch_of_1000"], peer.hot),
                "over_1000_accounts": _ratio(rates["batch_of_1000"], peer.spread),
            }
            for name, peer in peers.items()
        },
        "left_out": left_out,
    }


def _ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    return spread([value / other for value, other in zip(values, others, strict=True)])


def _open_peers(url: str, pgledger: Path | None, left_out: dict[str, str]) -> Iterator[tuple[str, Peer]]:
    """Each ledger that is there, with its tables and accounts; the others are added to `left_out`, with the reason."""
    if not embedded._program("pgbench").exists():
        left_out["one_statement"] = left_out["pgledger"] = "PostgreSQL's programs lack pgbench"
    else:
        _create_debits(url)
        yield "one_statement", Peer(1, lambda accounts, seconds: _pgbench(url, "debit.sql", accounts, seconds))
        if pgledger is None:
            left_out["pgledger"] = "PGLEDGER names no checkout of it"
        else:
            _create_pgledger(url, pgledger)
            yield "pgledger", Peer(2, lambda accounts, seconds: _pgbench(url, "transfer.sql", accounts, seconds))
    for name, hot_accounts in (("credit-ledger", 1), ("django-hordak", 2)):
        if not PYTHON.exists():
            left_out[name] = "there is no build/peers"
        else:
            _run_package(url, name, "prepare")
            yield name, Peer(hot_accounts, _debits_of(url, name))


def _create_debits(url: str) -> None:
    """The tables of debit.sql."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE debit_accounts (account_id int PRIMARY KEY, balance bigint NOT NULL, version bigint NOT NULL)"
            " WITH (fillfactor = 50)"
        )
        connection.execute(
            "CREATE TABLE debit_entries (account_id int, version bigint, amount bigint NOT NULL,"
            " balance_after bigint NOT NULL, create_time timestamptz NOT NULL, PRIMARY KEY (account_id, version))"
        )
        connection.execute(
            "INSERT INTO debit_accounts SELECT number, 1000000000, 0 FROM generate_series(1, 1000) AS number"
        )


def _create_pgledger(url: str, checkout: Path) -> None:
    """Its SQL, after the functions for ULIDs that it needs, and accounts by number."""
    with psycopg.connect(url) as connection:
        for file in [*sorted(checkout.glob("vendor/**/*.sql")), checkout / "pgledger.sql"]:
            connection.execute(file.read_bytes())
        connection.execute("CREATE TABLE pgledger_numbers (number int PRIMARY KEY, account_id text NOT NULL)")
        connection.execute(
            "INSERT INTO pgledger_numbers SELECT number, (pgledger_create_account(number::text, 'USD')).id"
            " FROM generate_series(1, 1000) AS number"
        )


def _pgbench(url: str, script: str, accounts: int, seconds: float) -> float:
    """Transactions per second. Raises RuntimeError when one failed."""
    arguments = [
        *("--no-vacuum", "--protocol=prepared", f"--client={SESSIONS}", "--jobs=2", f"--time={max(1, round(seconds))}"),
        *(f"--define=accounts={accounts}", f"--file={Path(__file__).with_name(script)}"),
    ]
    done = subprocess.run(  # noqa: S603 - the package's own program
        [embedded._program("pgbench"), *arguments, url], capture_output=True, text=True, check=False
    )
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"pgbench: {done.stderr}")
    return float(found[1])


def _run_package(url: str, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own script
        [PYTHON, _PACKAGES, *arguments],
        env=os.environ | {"DATABASE_URL": url, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout


def _debits_of(url: str, package: str) -> Callable[[int, float], float]:
    return lambda accounts, seconds: float(_run_package(url, package, str(accounts), str(SESSIONS), str(seconds)))


def main() -> None:
    """Measure, print and write build/peers.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pgledger", type=Path, help="a checkout of pgledger; it is left out without one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pulsa-peers-") as name:
        (folder := Path(name)).chmod(0o755)  # PostgreSQL runs as another user when this is root
        with benchmark_environment(folder) as environment:
            found: Mapping[str, object] = measure(
                environment, rounds=arguments.rounds, seconds=arguments.seconds, pgledger=arguments.pgledger
            )
    print(table(found))  # noqa: T201 - a command that talks to a terminal
    output = Path("build/peers.json")
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
