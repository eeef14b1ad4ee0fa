"""Replicas that are killed, frozen and cut off at random under load, and each message that went out twice.

`python -m tests.faults.doubles` draws 200 faults. A message may go twice only when the replica that sent it first was
killed before it stored the outcome, or was frozen or cut off from the database for longer than what its lease left; or
when a replica was frozen in the middle of the call, and another one sent the message before it woke.
"""

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple
from uuid import uuid4

import psycopg
from psycopg.conninfo import make_conninfo
from pulsa.errors import PulsaError

from server.postgres import embedded
from server.postgres.migrate import migrate
from tests.fault_proxy import Fault, FaultProxy, proxy_to
from tests.faults.process_deployment import UNSETTLED, ProcessDeployment, deployed_processes, recipient
from tests.waiting import until

_SEED: Final = 20
_LEASE_SECONDS: Final = 8.0
_MAIL_SECONDS: Final = 0.3
_HARMLESS_SECONDS: Final = 5.0
"""A freeze or a cut of at most so long sends no message twice: the lease, less what a call and its outcome may take."""
_RECOVERY_SECONDS: Final = 2.0
"""After which a replica has stored what waited: faults that follow sooner count as one."""
_KINDS: Final = ("kill", "freeze", "silence", "no answer", "refuse")
_SETTINGS: Final = {
    "PULSA_DELIVERY_LEASE_SECONDS": str(_LEASE_SECONDS),
    "PULSA_LOG_LEVEL": "info",
    "PULSA_DRAIN_SECONDS": "5",
}


class Sent(NamedTuple):
    """A call of the relay that it accepted; sorted by its beginning, in seconds of time.monotonic()."""

    began: float
    accepted: float
    replica: int


@dataclass(frozen=True, slots=True)
class RandomFault:
    """What happened to a replica, in seconds of time.monotonic(); `kinds` of several faults that were one."""

    replica: int
    kinds: str
    began: float
    ended: float

    def explains(self, sent: Sequence[Sent]) -> bool:
        """Whether a message may have been sent again because of this fault; `sent` are its calls, in order."""
        is_long = "kill" in self.kinds or self.ended - self.began > _HARMLESS_SECONDS
        lost = sent[0].replica == self.replica and self.began - _RECOVERY_SECONDS <= sent[0].began <= self.ended
        return is_long and lost


@dataclass(slots=True)
class Replica:
    """A server behind a relay of its own, which tells what it sent, and a proxy before its database."""

    deployment: ProcessDeployment
    proxy: FaultProxy
    is_down: bool = False


@dataclass(slots=True)
class Run:
    """Two replicas under load, and what came of it."""

    replicas: list[Replica]
    chance: random.Random
    faults: list[RandomFault] = field(default_factory=list)
    count: int = 0
    """Of the faults, before those that were one."""
    wanted: set[str] = field(default_factory=set)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def send_until_ended(self, replica: Replica) -> None:
        """Send a message after the other; repeat each until it is accepted, as callers do."""
        while not self.ended.is_set():
            request_id = str(uuid4())
            while replica.is_down or not await _is_accepted(replica.deployment, request_id):
                if self.ended.is_set():
                    return
                await asyncio.sleep(0.05)
            self.wanted.add(f"{request_id}@mail.example")
            await asyncio.sleep(0.05)

    async def fault(self) -> None:
        """One fault of one replica, mostly shorter than a lease."""
        number = self.chance.randrange(len(self.replicas))
        kind, replica = self.chance.choice(_KINDS), self.replicas[number]
        is_long = self.chance.random() < 0.2
        seconds = self.chance.uniform(_LEASE_SECONDS, 1.3 * _LEASE_SECONDS) if is_long else self.chance.uniform(0.05, 2)
        began, server = time.monotonic(), replica.deployment.running["serve"]
        match kind:
            case "kill":
                replica.is_down = True
                await server.kill()
                await replica.deployment.start("serve")
                replica.is_down = False
            case "freeze":
                server.signal(signal.SIGSTOP)
                await asyncio.sleep(seconds)
                server.signal(signal.SIGCONT)
            case _:
                replica.proxy.set(Fault[kind.upper().replace(" ", "_")])
                await asyncio.sleep(seconds)
                replica.proxy.set(Fault.NONE)
        self._add(RandomFault(number, kind, began, time.monotonic()))
        await asyncio.sleep(self.chance.uniform(0, 1))

    def _add(self, fault: RandomFault) -> None:
        self.count += 1
        last = next((one for one in reversed(self.faults) if one.replica == fault.replica), None)
        if last and fault.began - last.ended < _RECOVERY_SECONDS:
            self.faults.remove(last)
            fault = RandomFault(fault.replica, f"{last.kinds}, {fault.kinds}", last.began, fault.ended)
        self.faults.append(fault)

    def doubles(self) -> list[list[Sent]]:
        """The calls for each message that went out more than once, by their beginning."""
        sent: defaultdict[str, list[Sent]] = defaultdict(list)
        for number, replica in enumerate(self.replicas):
            for mail in replica.deployment.relay.mails:
                sent[recipient(mail)].append(Sent(mail.began, mail.accepted, number))
        return [sorted(calls) for calls in sent.values() if len(calls) > 1]

    def report(self, began: float) -> bool:
        """Print each fault with the number of messages that went twice because of it; whether all have a cause."""
        doubles = self.doubles()
        causes: Counter[RandomFault | None] = Counter()
        for sent in doubles:
            cause = next((fault for fault in self.faults if fault.explains(sent)), None)
            causes[cause] += 1
            if cause is None:
                calls = [(round(call.began - began, 2), round(call.accepted - began, 2), call.replica) for call in sent]
                print(f"  WITHOUT A CAUSE, from, to and replica: {calls}")  # noqa: T201
        for fault, count in causes.items():
            if fault is not None:
                when = f"{fault.began - began:.1f} to {fault.ended - began:.1f} s"
                print(f"  {count} twice: {fault.kinds} of replica {fault.replica}, {when}")  # noqa: T201
        print(  # noqa: T201
            f"{self.count} faults, {len(self.wanted)} messages accepted, {len(doubles)} sent twice, "
            f"{causes[None]} of them without a cause"
        )
        return not causes[None]


async def _is_accepted(deployment: ProcessDeployment, request_id: str) -> bool:
    try:
        await deployment.send(email=f"{request_id}@mail.example", request_id=request_id)
    except PulsaError:
        return False
    return True


def _outbox_is_empty(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return connection.execute(UNSETTLED).fetchone() == (0,)


@asynccontextmanager
async def two_replicas(url: str, folder: Path) -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        replicas = []
        for _ in range(2):
            proxy, proxied = await stack.enter_async_context(proxy_to(url))
            deployment = await stack.enter_async_context(deployed_processes(proxied, folder, **_SETTINGS))
            deployment.relay.delay_seconds = _MAIL_SECONDS
            replicas.append(Replica(deployment, proxy))
        yield replicas


async def run(url: str, folder: Path, *, faults: int, seed: int = _SEED) -> bool:
    """Draw faults under load; whether every accepted message went out, and each that went twice has a cause."""
    began = time.monotonic()
    async with two_replicas(url, folder) as replicas:
        await replicas[0].deployment.grant(1_000_000)
        drawn = Run(replicas, random.Random(seed))  # noqa: S311 - for a repeatable draw
        senders = [asyncio.create_task(drawn.send_until_ended(replica)) for replica in replicas for _ in range(4)]
        for _ in range(faults):
            await drawn.fault()
        drawn.ended.set()
        await asyncio.gather(*senders)
        mails = [replica.deployment.relay for replica in replicas]
        await until(lambda: drawn.wanted <= {recipient(mail) for relay in mails for mail in relay.mails})
        await until(lambda: _outbox_is_empty(url))
        return drawn.report(began)


def main() -> int:
    """Draw 200 faults; 0 when each message that went twice has a cause."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with embedded.start(folder / "postgres", settings={"fsync": "off"}) as postgres:
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE doubles")
            url = make_conninfo(postgres.url, dbname="doubles")
            migrate(url)
            faults = int(sys.argv[1]) if len(sys.argv) > 1 else 200
            return 0 if asyncio.run(run(url, folder, faults=faults)) else 1


if __name__ == "__main__":
    sys.exit(main())
