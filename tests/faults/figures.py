"""`make test-faults`: measures what callers notice of locks, silent hosts, outages and a hot organization.

Each figure is measured against a server process with its default time-outs, on an embedded PostgreSQL, in at most a few
minutes and a few thousand calls. The program exits with 1 when a figure misses its goal.
"""

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pulsa.errors import PulsaError

from server.postgres import embedded
from server.postgres.migrate import migrate
from tests.fault_proxy import Fault, FaultProxy, proxy_to
from tests.faults.process_deployment import ProcessDeployment, deployed_processes
from tests.faults.siege import siege

_CREDITS: Final = 1_000_000
_FREE: Final = [f"org-{number}" for number in range(20)]
_REASON_SECONDS: Final = 2.5
_DEFAULTS: Final = {"PULSA_DATABASE_CONNECTIONS": "8", "PULSA_LOG_LEVEL": "info", "PULSA_DELIVERY_LEASE_SECONDS": "120"}
_SEED: Final = 19


@dataclass(slots=True)
class Calls:
    """The ends of many sends: seconds and reason of each; the reason of a success is empty."""

    ends: list[tuple[float, str]] = field(default_factory=list)
    accepted: list[tuple[str, str]] = field(default_factory=list)
    """Organization and request_id."""

    async def send(self, deployment: ProcessDeployment, organization_id: str, request_id: str = "") -> bool:
        request_id = request_id or str(uuid4())
        began, reason = time.monotonic(), ""
        try:
            await deployment.send(organization_id, email=f"{request_id}@mail.example", request_id=request_id)
            self.accepted.append((organization_id, request_id))
        except PulsaError as error:
            reason = error.reason or error.code.name
        self.ends.append((time.monotonic() - began, reason))
        return not reason

    @property
    def failures(self) -> Counter[str]:
        return Counter(reason for _, reason in self.ends if reason)

    def percentile_ms(self, percent: float) -> float:
        seconds = sorted(seconds for seconds, _ in self.ends)
        return 1000 * seconds[min(len(seconds) - 1, int(len(seconds) * percent / 100))]


async def send_at_rate(
    calls: Calls, deployment: ProcessDeployment, organizations: list[str], *, per_second: float, seconds: float
) -> None:
    """Send at a fixed rate, whatever the answers, and wait for all of them."""
    async with asyncio.TaskGroup() as group:
        for number in range(round(per_second * seconds)):
            group.create_task(calls.send(deployment, organizations[number % len(organizations)]))
            await asyncio.sleep(1 / per_second)


async def locked_neighbour(deployment: ProcessDeployment, url: str) -> tuple[str, bool]:
    """20 organizations send 100/s together while the account of a 21st, which sends too, is locked for 13 s."""
    calls, own = Calls(), Calls()
    async with await psycopg.AsyncConnection.connect(url) as holder:
        await holder.execute("SELECT FROM accounts WHERE organization_id = 'hot' FOR UPDATE")
        await asyncio.gather(
            send_at_rate(calls, deployment, _FREE, per_second=100, seconds=13),
            send_at_rate(own, deployment, ["hot"], per_second=5, seconds=12),
        )
    text = (
        f"{calls.failures.total()} of {len(calls.ends)} failed, p99 {calls.percentile_ms(99):.0f} ms; "
        f"the locked one's: {dict(own.failures)} of {len(own.ends)}"
    )
    good = not calls.failures and calls.percentile_ms(99) <= 500 and set(own.failures) <= {"ACCOUNT_BUSY"}
    return text, good


async def vanished_host(deployment: ProcessDeployment, primary: FaultProxy, standby: FaultProxy) -> tuple[str, bool]:
    """The primary's host falls silent; 3 s later the other host takes writes."""
    primary.set(Fault.SILENCE)
    began = time.monotonic()
    promotion = asyncio.get_running_loop().call_later(3, standby.set, Fault.NONE)
    calls = Calls()

    async def send_until_one_succeeds() -> float:
        tasks: set[asyncio.Task[bool]] = set()
        while True:
            tasks.add(asyncio.create_task(calls.send(deployment, "org-1")))
            done, tasks = await asyncio.wait(tasks, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result() for task in done):
                await asyncio.gather(*tasks)
                return time.monotonic() - began

    seconds = await send_until_one_succeeds()
    promotion.cancel()
    return f"{seconds:.1f} s; {dict(calls.failures)}", seconds <= 6


async def outage(deployment: ProcessDeployment, hosts: list[FaultProxy], fault: Fault) -> tuple[str, bool]:
    """The database is away for 45 s at 50 sends/s."""
    calls = Calls()
    for host in hosts:
        host.set(fault)
    await send_at_rate(calls, deployment, _FREE, per_second=50, seconds=45)
    hosts[-1].set(Fault.NONE)
    in_time = sum(seconds <= _REASON_SECONDS and reason == "DATABASE_UNAVAILABLE" for seconds, reason in calls.ends)
    share = in_time / len(calls.ends)
    return f"{share:.1%} with a reason within {_REASON_SECONDS} s; {dict(calls.failures)}", share >= 0.99


async def hot_organization(url: str, folder: Path, deployment: ProcessDeployment) -> tuple[str, bool]:
    """Two replicas on one organization against one: their rate, and the slower one's share of the faster one's."""

    async def rate(replicas: list[ProcessDeployment], seconds: float = 5.0) -> list[float]:
        counts = [0] * len(replicas)
        end = time.monotonic() + seconds

        async def send_until_end(number: int) -> None:
            calls = Calls()
            while time.monotonic() < end:
                succeeded = await calls.send(replicas[number], "hot")
                counts[number] += succeeded

        callers = 32 // len(replicas)
        await asyncio.gather(*(send_until_end(number) for number in range(len(replicas)) for _ in range(callers)))
        return [count / seconds for count in counts]

    async with deployed_processes(url, folder, **_DEFAULTS) as other:
        (alone,) = await rate([deployment])
        both = await rate([deployment, other])
    share = min(both) / max(both)
    return (
        f"{sum(both):.0f}/s against {alone:.0f}/s, slower one {share:.2f} of the faster",
        sum(both) >= 0.9 * alone and share >= 0.3,
    )


async def random_faults(deployment: ProcessDeployment, proxy: FaultProxy, url: str) -> tuple[str, bool]:
    """200 faults drawn at random under load: sends without a ledger entry, and entries without a send."""
    chance, calls, ended = random.Random(_SEED), Calls(), asyncio.Event()  # noqa: S311 - for a repeatable draw
    wanted: set[str] = set()

    async def keep_sending(organization_id: str) -> None:
        while not ended.is_set():
            request_id = str(uuid4())
            wanted.add(request_id)
            while not await calls.send(deployment, organization_id, request_id):  # noqa: ASYNC110 - a caller's pause
                await asyncio.sleep(0.05)

    senders = [asyncio.create_task(keep_sending(name)) for name in _FREE[:8]]
    for _ in range(200):
        match chance.choice(["reset", "silence", "no answer", "refuse", "delay"]):
            case "reset":
                proxy.reset()
            case "silence":
                proxy.set(Fault.SILENCE)
            case "no answer":
                proxy.set(Fault.NO_ANSWER)
            case "refuse":
                proxy.set(Fault.REFUSE)
            case _:
                proxy.delay_seconds = 0.05
        await asyncio.sleep(chance.uniform(0.02, 0.3))
        proxy.set(Fault.NONE)
        proxy.delay_seconds = 0.0
        await asyncio.sleep(chance.uniform(0.02, 0.2))
    ended.set()
    await asyncio.gather(*senders)
    accepted = {request_id for _, request_id in calls.accepted}
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT request_id::text FROM requests JOIN ledger_entries"
            " ON ledger_entries.organization_id = requests.organization_id AND reference_id = answer_id"
            " WHERE kind = 'SEND' AND request_id = ANY(%s::uuid[])",
            [list(wanted)],
        ).fetchall()
    stored = Counter(row[0] for row in rows)
    missing, surplus = accepted - stored.keys(), stored.total() - len(accepted)
    return f"{len(accepted)} sends: {len(missing)} without an entry, {surplus} entries without a send", not (
        missing or surplus
    )


@asynccontextmanager
async def measured_server(url: str, folder: Path) -> AsyncIterator[tuple[ProcessDeployment, FaultProxy, FaultProxy]]:
    """A server that reaches PostgreSQL by two hosts, of which the second refuses connections at first."""
    async with proxy_to(url) as (first, first_url), proxy_to(url) as (second, second_url):
        second.set(Fault.REFUSE)
        ports = [str(conninfo_to_dict(one)["port"]) for one in (first_url, second_url)]
        hosts = make_conninfo(url, host="127.0.0.1,127.0.0.1", port=",".join(ports))
        async with deployed_processes(hosts, folder, **_DEFAULTS) as deployment:
            for organization_id in ("hot", *_FREE):
                await deployment.grant(_CREDITS, organization_id)
            yield deployment, first, second


async def _measure(url: str, folder: Path) -> bool:
    good = True

    async def report(name: str, figure: Callable[[], Awaitable[tuple[str, bool]]]) -> None:
        nonlocal good
        text, reached = await figure()
        good = good and reached
        print(f"{'ok  ' if reached else 'MISS'} {name}: {text}", flush=True)  # noqa: T201

    async with measured_server(url, folder) as (deployment, first, second):
        await report("a locked neighbour", lambda: locked_neighbour(deployment, url))
        await report("a flood of guesses", lambda: siege(deployment))
        await report("two replicas on one organization", lambda: hot_organization(url, folder, deployment))
        await report("a host that vanishes", lambda: vanished_host(deployment, first, second))
        await report("200 random faults", lambda: random_faults(deployment, second, url))
        for fault in (Fault.REFUSE, Fault.SILENCE):
            await report(f"45 s of {fault.name}", partial(outage, deployment, [first, second], fault))
            await asyncio.sleep(5)
        holds = "every ledger holds" in await deployment.audit()
        print(f"{'ok  ' if holds else 'MISS'} the audit of every ledger", flush=True)  # noqa: T201
    return good and holds


def main() -> int:
    """Measure and print every figure; 0 when each reaches its goal."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with embedded.start(folder / "postgres", settings={"fsync": "off"}) as postgres:
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE figures")
            url = make_conninfo(postgres.url, dbname="figures")
            migrate(url)
            return 0 if asyncio.run(_measure(url, folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
