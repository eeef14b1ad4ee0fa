"""`make soak`: two hours at half of the maximum through restarts, rotations and failovers; writes build/soak.json.

Two replicas with mutual TLS share a database. A key of each ring is rotated once, early; the first replica then runs to
the end, so that its memory shows a leak. Every half minute one thing happens, in rounds of all of them.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from server.postgres import embedded
from server.postgres.migrate import migrate
from tests.bench.environment import POSTGRES, fund_accounts
from tests.bench.soak_load import Counts, Load
from tests.bench.soak_site import Site, open_site
from tests.faults.process_deployment import UNSETTLED

_STEP_SECONDS: Final = 30.0
_MAXIMUM_SECONDS: Final = 10.0
_KEYS_AFTER_SECONDS: Final = 60.0
_OLD_CODES_SECONDS: Final = 330.0
"""How long a code under the old key is valid, and a little."""
_SETTLE_SECONDS: Final = 120.0
_TABLES: Final = ("accounts", "ledger_entries", "otps", "deliveries", "outbox", "unverified_credits", "job_leases")
_SEED: Final = 20


@dataclass
class Soak:
    """One run and its figures."""

    site: Site
    load: Load
    output: Path
    samples: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, object]] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    began: float = 0.0

    async def run(self, minutes: float, most_per_second: float) -> None:
        """Load, disturb, sample; then settle what is in flight."""
        async with asyncio.TaskGroup() as group:
            verifying = group.create_task(self.load.verify_what_arrives())
            maximum = await self.load.maximum(_MAXIMUM_SECONDS)
            rate = min(maximum / 2, most_per_second)
            self.figures |= {"maximum": maximum, "rate": rate, "samples": self.samples, "faults": self.faults}
            self.began, ended = time.monotonic(), asyncio.Event()
            self.load.counts = Counts()
            await self._sample()
            sending = group.create_task(self.load.run(rate, ended))
            rotating = group.create_task(self._rotate_keys())
            await self._disturb(60 * minutes, rotating)
            ended.set()
            await sending
            await self._settle()
            verifying.cancel()

    async def _disturb(self, seconds: float, rotating: asyncio.Task[None]) -> None:
        kinds: list[str] = []
        while (passed := time.monotonic() - self.began) < seconds or not rotating.done():
            kinds = kinds or self.site.chance.sample(sorted(self.site.faults), len(self.site.faults))
            kind = kinds.pop()
            async with self.site.undisturbed:
                await self.site.faults[kind]()
            self.faults.append({"seconds": passed, "kind": kind})
            await asyncio.sleep(max(0.0, self.began + passed + _STEP_SECONDS - time.monotonic()))
            async with self.site.undisturbed:
                await self._sample()

    async def _rotate_keys(self) -> None:
        """As operations.md says: the digest key's rotation ends a day later, so both digest keys stay."""
        await asyncio.sleep(_KEYS_AFTER_SECONDS)
        new = await self.site.add_keys()
        await asyncio.sleep(_OLD_CODES_SECONDS)
        self.figures["rotate"] = await self.site.run("rotate")
        await self.site.roll(PULSA_SECRET_KEYS=new["PULSA_SECRET_KEYS"])
        self.figures["keys_rotated_seconds"] = time.monotonic() - self.began

    async def _sample(self) -> None:
        connections, sends, waiting = (
            await self.site.execute(
                "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()),"
                " (SELECT sum(last_sequence) - count(*) FROM accounts)::float, (SELECT count(*) FROM outbox)"
            )
        )[0]
        sizes = await self.site.execute(
            "SELECT coalesce((SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(name::regclass)),"
            " pg_total_relation_size(name::regclass))::float"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS tables (name, number) ORDER BY number",
            list(_TABLES),
        )
        counts, self.load.counts = self.load.counts, Counts()
        sample = {
            "seconds": time.monotonic() - self.began,
            "megabytes": dict(zip(("first", "second"), self.site.memory(), strict=True)),
            "files": dict(zip(("first", "second"), self.site.files(), strict=True)),
            "connections": connections,
            "sends": sends,
            "outbox": waiting,
            "bytes": {table: size for table, (size,) in zip(_TABLES, sizes, strict=True)},
        } | counts.figures()
        self.samples.append(sample)
        self.output.write_text(json.dumps(self.figures, indent=1) + "\n")
        print(json.dumps(sample), flush=True)  # noqa: T201 - shows the progress

    async def _settle(self) -> None:
        """Wait until every delivery has its outcome and every code that arrived is verified."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            ((unsettled,),) = await self.site.execute(UNSETTLED)
            if not unsettled and not self.load.unverified:
                return
            await asyncio.sleep(0.5)

    async def judge(self) -> bool:
        """Add what was lost to the figures; returns whether nothing was."""
        stored = await self.site.execute(
            "SELECT request_id::text FROM ledger_entries LEFT JOIN requests"
            " ON requests.organization_id = ledger_entries.organization_id AND answer_id = reference_id"
            " WHERE kind = 'SEND'"
        )
        ((refunds,),) = await self.site.execute("SELECT count(*) FROM ledger_entries WHERE kind = 'REFUND'")
        charged = [str(request_id) for (request_id,) in stored]
        accepted = self.load.accepted.keys()
        code, audit = await self.site.run("audit")
        self.figures |= {
            "accepted": len(accepted),
            "without_an_entry": len(accepted - set(charged)),
            "entries_without_a_send": len(charged) - len(accepted),
            "refunds": refunds,
            "verified": self.load.verified,
            "unverified": len(self.load.unverified),
            "messages": dict(self.load.messages),
            "lost_calls": self.load.lost[:20],
            "audit": audit.splitlines()[-3:],
        }
        self.output.write_text(json.dumps(self.figures, indent=1) + "\n")
        return not (code or accepted ^ set(charged) or len(charged) != len(accepted) or self.load.lost)


def main() -> int:
    """Run, audit, and write; 1 when something was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--most-per-second", type=float, default=1e9, help="for a machine that is shared")
    parser.add_argument("--output", type=Path, default=Path("build/soak.json"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pulsa-soak-") as name:
        (folder := Path(name)).chmod(0o755)  # PostgreSQL runs as another user when this is root
        with embedded.start(folder / "postgres", settings=POSTGRES) as postgres:
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE soak")
            url = make_conninfo(postgres.url, dbname="soak")
            migrate(url)
            fund_accounts(url)
            try:
                good = asyncio.run(_soak(url, folder, arguments))
            finally:
                for log in folder.glob("*.log"):  # the newest is of the first replica's last process, or the second's
                    shutil.copy(log, arguments.output.parent)
    return 0 if good else 1


async def _soak(url: str, folder: Path, arguments: argparse.Namespace) -> bool:
    async with open_site(url, folder, seed=_SEED) as (site, channel):
        load = Load(channel, site.relay, lambda: site.token)
        soak = Soak(site, load, arguments.output)
        await soak.run(arguments.minutes, arguments.most_per_second)
        return await soak.judge()


if __name__ == "__main__":
    sys.exit(main())
