"""Replicas whose machines' clocks differ or step, and a database whose clock steps: each message goes once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.clock import DatabaseClock
from server.sandbox.relay import HANG, Relay
from tests.acceptance.deployment import Deployment, deployed
from tests.database_clock import steppable_clock
from tests.waiting import until

SENDS = 60
STEPS = [timedelta(minutes=10), timedelta(minutes=-10)]


class Machine:
    """A machine's clock, which may be wrong and step."""

    def __init__(self, ahead: timedelta = timedelta()) -> None:
        self.ahead = ahead

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def recipients(relay: Relay) -> Counter[str]:
    return Counter(mail.envelope[1].partition("<")[2].partition(">")[0] for mail in relay.mails)


@asynccontextmanager
async def replica(url: str, folder: Path, relay: Relay, machine: Machine, **changes: Any) -> AsyncIterator[Deployment]:
    smtp = {"host": "127.0.0.1", "port": relay.port, "security": "none", "sender": "a@b.example", "timeout_seconds": 3}
    settings = {"channel": {"email": "smtp", "wait_seconds": 2}, "smtp": smtp} | changes
    async with deployed(url, folder, clock=DatabaseClock(machine=machine), **settings) as deployment:
        yield deployment


async def send_some(replicas: list[Deployment], meanwhile: Callable[[], object]) -> Counter[str]:
    """Send to one address after the other, through the replicas in turn; `meanwhile` happens in the middle."""
    addresses = [f"person-{number}@mail.example" for number in range(SENDS)]
    async with asyncio.TaskGroup() as group:
        for number, address in enumerate(addresses):
            if number == SENDS // 2:
                meanwhile()
            # As long as a code may work: with another time it would be refused as expired, and its message refunded.
            group.create_task(replicas[number % len(replicas)].send(email=address, ttl={"seconds": 600}))
            await asyncio.sleep(0.05)
    return Counter(addresses)


async def outbox_is_empty(replica: Deployment) -> bool:
    otps = (await replica.call("ListOtps", page_size=SENDS)).otps
    return all(delivery.status != 1 for otp in otps for delivery in otp.deliveries)


async def test_replicas_61_seconds_apart_send_each_message_once(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(Relay())
        relay.delay_seconds = 1.5
        machines = [Machine(), Machine(timedelta(seconds=61)), Machine(timedelta(seconds=-61))]
        replicas = [
            await stack.enter_async_context(replica(database_url, tmp_path, relay, machine)) for machine in machines
        ]
        await replicas[0].grant(SENDS)
        wanted = await send_some(replicas, lambda: None)
        await until(lambda: recipients(relay).keys() == wanted.keys())
        await until(lambda: outbox_is_empty(replicas[0]))
        assert await replicas[0].balance() == 0
    assert recipients(relay) == wanted


@pytest.mark.parametrize("step", STEPS, ids=["forward", "back"])
async def test_a_machine_clock_that_steps_sends_no_message_twice(
    database_url: str, tmp_path: Path, step: timedelta
) -> None:
    async with Relay() as relay:
        relay.delay_seconds = 1.5
        machine = Machine()
        async with (
            replica(database_url, tmp_path, relay, machine) as one,
            replica(database_url, tmp_path, relay, Machine()) as other,
        ):
            await one.grant(SENDS)
            wanted = await send_some([one, other], lambda: setattr(machine, "ahead", step))
            await until(lambda: recipients(relay).keys() == wanted.keys())
            await until(lambda: outbox_is_empty(one))
            assert await one.balance() == 0
    assert recipients(relay) == wanted


async def test_a_database_clock_that_jumps_forward_sends_no_message_twice(database_url: str, tmp_path: Path) -> None:
    """Also the clock of another host after a failover. With so few at once, messages wait while it jumps.

    It jumps beyond the lease of each, but not beyond its code: that would be refused as expired.
    """
    lease = {"lease_seconds": 12, "concurrency": 4}
    with steppable_clock(database_url) as (url, set_ahead):
        async with Relay() as relay:
            relay.delay_seconds = 1.5
            async with (
                replica(url, tmp_path, relay, Machine(), delivery=lease) as one,
                replica(url, tmp_path, relay, Machine(), delivery=lease) as other,
            ):
                await one.grant(SENDS)
                wanted = await send_some([one, other], lambda: set_ahead(300))
                await until(lambda: recipients(relay).keys() == wanted.keys())
                await until(lambda: outbox_is_empty(one))
                assert await one.balance() == 0
    assert recipients(relay) == wanted


@pytest.mark.parametrize("step", STEPS, ids=["forward", "back"])
async def test_the_lease_of_a_replica_whose_clock_stepped_ends_in_its_time(
    database_url: str, tmp_path: Path, step: timedelta
) -> None:
    lease = {"lease_seconds": 9}
    async with Relay() as relay:
        relay.play("DATA", HANG)  # once its content has left, a mail that is cancelled has an outcome
        machine = Machine()
        async with replica(database_url, tmp_path, relay, machine, drain_seconds=0, delivery=lease) as one:
            await one.grant(1)
            machine.ahead = step
            await one.send(email="ann@mail.example", ttl={"seconds": 600})
            await relay.reached("DATA")
        async with replica(database_url, tmp_path, relay, Machine(), delivery=lease):
            await until(lambda: recipients(relay) == {"ann@mail.example": 1})
