"""Kill -9 of a server with streams of events: each goes on with another server, and misses and reorders nothing.

With EVENT_STREAMS=1000 in the environment there are a thousand streams, as the operator of many services has them.
"""

import asyncio
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from pulsa.aio import PulsaClient, connect
from pulsa.errors import PulsaError
from pulsa.otp.v1.delivery_pb2 import DeliveryStatus

from tests.faults.replicas import Replicas, two_replicas
from tests.waiting import until

STREAMS = int(os.environ.get("EVENT_STREAMS", "100"))
ORGANIZATIONS = [f"acme-{number}" for number in range(10)]
SENDS = 20
"""Of each organization: half of them before the kill."""
ROOM = {
    "PULSA_LIMIT_STREAMS_AT_ONCE": str(2 * STREAMS),
    "PULSA_LIMIT_CALLS_PER_CONNECTION": str(2 * STREAMS),
    "PULSA_LIMIT_CALLS_WAITING": str(4 * STREAMS),
}


class Reader:
    """A stream, and what it has read: each event's number, delivery and status."""

    def __init__(self, client: PulsaClient, organization_id: str, cursor: str) -> None:
        self.organization_id = organization_id
        self.events: list[tuple[int, str, str]] = []
        self.is_open = False
        self._task = asyncio.create_task(self._read(client.watch_events(organization_id, cursor=cursor)))

    async def _read(self, responses: Any) -> None:
        async for response in responses:
            self.is_open = True
            for event in response.events:
                change = event.delivery_changed
                status = DeliveryStatus.Name(change.status).removeprefix("DELIVERY_STATUS_")
                self.events.append((event.number, change.delivery_id, status))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def send_all(replicas: Replicas, count: int) -> None:
    """Send so many e-mails of each organization, several at once; an unanswered call is repeated."""
    places = asyncio.Semaphore(16)

    async def send(organization_id: str) -> None:
        request_id = str(uuid4())
        async with places:
            answer = None
            while answer is None:
                try:
                    answer = await replicas.deployment.send(
                        organization_id, email=f"{request_id}@mail.example", request_id=request_id
                    )
                except PulsaError:
                    await asyncio.sleep(0.05)

    await asyncio.gather(*(send(own) for own in ORGANIZATIONS * count))


def stored(database_url: str) -> tuple[dict[str, list[tuple[int, str, str]]], Counter[tuple[str, str]]]:
    """The events of each organization, and each delivery with its status."""
    with psycopg.connect(database_url) as connection:
        events: dict[str, list[tuple[int, str, str]]] = {own: [] for own in ORGANIZATIONS}
        for own, number, details in connection.execute(
            "SELECT organization_id, number, details FROM events WHERE kind = 'DELIVERY_CHANGED' ORDER BY number"
        ):
            events[own].append((number, details["delivery_id"], details["status"]))
        deliveries = connection.execute("SELECT delivery_id::text, status FROM deliveries")
        return events, Counter((row[0], row[1]) for row in deliveries)


async def test_every_stream_goes_on_with_another_server_without_a_gap_or_another_order(
    database_url: str, tmp_path: Path
) -> None:
    async with two_replicas(database_url, tmp_path, **ROOM) as replicas, AsyncExitStack() as stack:
        for own in ORGANIZATIONS:
            await replicas.deployment.grant(10_000, own)
        cursors = {own: (await replicas.deployment.call("EnableEvents", own)).cursor for own in ORGANIZATIONS}
        targets = ",".join(settings["PULSA_LISTEN"] for settings in replicas.settings)
        # The first address that answers: all streams are of the server that is killed.
        client = connect(f"ipv4:{targets}", token=replicas.deployment.token(organization_id="*"))
        await stack.enter_async_context(client)
        readers = [Reader(client, own, cursors[own]) for own in (ORGANIZATIONS * STREAMS)[:STREAMS]]
        for reader in readers:
            stack.push_async_callback(reader.close)
        await until(lambda: all(reader.is_open for reader in readers))

        await asyncio.sleep(5)  # what changes sooner may have no event, says EnableEvents

        await send_all(replicas, SENDS // 2)
        sending = asyncio.create_task(send_all(replicas, SENDS - SENDS // 2))
        await until(lambda: any(len(reader.events) > SENDS // 2 for reader in readers))
        replicas.processes[0].signal(signal.SIGKILL)
        await sending
        await replicas.deployment.wait_for_empty_outbox()
        events, deliveries = stored(database_url)
        await until(lambda: all(len(reader.events) >= len(events[reader.organization_id]) for reader in readers))

    assert [reader for reader in readers if reader.events != events[reader.organization_id]] == []
    told = Counter((delivery_id, status) for own in events.values() for _, delivery_id, status in own)
    assert told == deliveries
    assert len(told) == SENDS * len(ORGANIZATIONS)
