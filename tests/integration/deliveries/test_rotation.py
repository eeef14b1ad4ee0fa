"""A key leaves the ring: everything is sealed under the next one meanwhile, beside a server at work."""

import asyncio
import base64
from datetime import timedelta

import pytest

from server.__main__ import main
from server.channels.channel import ChannelName
from server.database.pool import Pool
from server.otps.otp import DeliveryStatus
from server.otps.retention import erase_destinations
from server.otps.rotation import COLUMNS, Column, Progress, find_needed_keys, reseal
from server.otps.targets import Address
from server.otps.vault import Vault
from server.sandbox.providers import whatsapp_error
from tests.integration.deliveries.post import EMAIL, LEASE, SMS, WHATSAPP, OpenPost, Windows

FIRST, SECOND, DIGEST = b"1" * 32, b"3" * 32, b"2" * 32
OLD = Vault({"first": FIRST}, digest_secret=DIGEST)
BOTH = Vault({"first": FIRST, "second": SECOND}, digest_secret=DIGEST)
NEW = Vault({"second": SECOND}, digest_secret=DIGEST)
DESTINATIONS, FALLBACKS = COLUMNS


async def resealed(pool: Pool, column: Column, vault: Vault = BOTH, *, at_once: int = 500) -> list[Progress]:
    return [progress async for progress in reseal(pool, vault, column, at_once=at_once)]


def email(number: int) -> Address:
    return EMAIL._replace(text=f"person-{number}@example.com")


async def test_what_an_old_key_sealed_is_opened_by_the_new_one_alone(open_post: OpenPost) -> None:
    old = open_post(vault=OLD, closed=True)
    await old.fund(100)
    sent = [await old.send(email(number)) for number in range(5)]

    steps = await resealed(old.pool, DESTINATIONS, at_once=2)
    again = await resealed(old.pool, DESTINATIONS)

    assert steps == [Progress(2, 2), Progress(4, 4), Progress(5, 5)]
    assert again == [Progress(5, 0)]
    for number, one in enumerate(sent):
        (delivery,) = await old.deliveries(one)
        assert NEW.unseal(delivery.destination_sealed or b"", organization_id="acme") == f"person-{number}@example.com"


async def test_fallbacks_outlive_their_key(open_post: OpenPost, windows: Windows) -> None:
    old = open_post(vault=OLD, closed=True)
    await old.fund(100)
    # Its code needs the old key as well, so that this one is made by the next server.
    accepted = await open_post(vault=BOTH, clock=old.clock, closed=True).send(WHATSAPP, SMS)
    await old.rows(
        "UPDATE outbox SET fallbacks_sealed = %s RETURNING 1",
        OLD.seal(f'[["SMS", "{SMS.text}"]]', organization_id="acme"),
    )
    windows.sandbox.play("whatsapp", whatsapp_error(131026))

    steps = await resealed(old.pool, FALLBACKS)
    await open_post(vault=NEW, clock=old.clock).watch(ahead=LEASE)

    assert steps == [Progress(1, 1)]
    assert [(one.channel, one.status) for one in await old.deliveries(accepted)] == [
        (ChannelName.WHATSAPP, DeliveryStatus.FAILED),
        (ChannelName.SMS, DeliveryStatus.SENT),
    ]


async def test_what_no_key_opens_and_what_was_erased_stays_as_it_is(open_post: OpenPost) -> None:
    post = open_post(vault=OLD)
    await post.fund(100)
    await post.deliver(email(1))
    await erase_destinations(post.pool, before=post.clock() + timedelta(days=1), limit=10)
    await post.deliver(email(2))
    before = await post.rows("SELECT destination_sealed FROM deliveries ORDER BY delivery_id")

    steps = await resealed(post.pool, DESTINATIONS, NEW)

    assert steps == [Progress(1, 0, unreadable=1)]
    assert await post.rows("SELECT destination_sealed FROM deliveries ORDER BY delivery_id") == before


async def test_the_keys_that_are_needed_are_told_with_what_needs_them(open_post: OpenPost) -> None:
    old = open_post(vault=OLD, closed=True)
    await old.fund(100)
    await old.send(WHATSAPP, SMS)
    await open_post(vault=BOTH, clock=old.clock, closed=True).send(EMAIL)
    needed = await find_needed_keys(old.pool, now=old.clock())
    for column in COLUMNS:
        await resealed(old.pool, column)

    assert needed == {
        "first": {"destinations": 1, "fallbacks": 1, "live OTPs": 1},
        "second": {"destinations": 1, "live OTPs": 1},
    }
    assert (await find_needed_keys(old.pool, now=old.clock()))["first"] == {"live OTPs": 1}
    assert set(await find_needed_keys(old.pool, now=old.clock() + timedelta(minutes=6))) == {"second"}


async def test_a_rotation_under_load_loses_nothing(open_post: OpenPost, windows: Windows) -> None:
    old = open_post(vault=OLD, closed=True)
    await old.fund(1000)
    left = [await old.send(email(number)) for number in range(40)]
    # As after the restart with both keys: it takes over what waits, and sends what comes.
    server = open_post(vault=BOTH, clock=old.clock)

    async def keep_rotating(column: Column) -> None:
        while rotating:
            await resealed(old.pool, column, at_once=7)

    rotating = True
    rotations = [asyncio.create_task(keep_rotating(column)) for column in COLUMNS * 2]
    taken = await server.watch(ahead=LEASE)
    sent = await asyncio.gather(*(server.send(email(number), SMS) for number in range(100, 160)))
    await server.idle()
    rotating = False
    await asyncio.gather(*rotations)

    assert taken == 40
    assert len(windows.relay.mails) == 100
    for one in [*left, *sent]:
        (delivery,) = await server.deliveries(one)
        assert delivery.status is DeliveryStatus.SENT
        assert NEW.unseal(delivery.destination_sealed or b"", organization_id="acme").startswith("person-")


async def test_the_command_tells_when_a_key_may_leave_the_ring(
    open_post: OpenPost, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = open_post(vault=OLD, closed=True)
    await old.fund(100)
    await old.send(EMAIL, ttl=timedelta(seconds=30))
    keys = {name: base64.b64encode(key).decode() for name, key in (("first", FIRST), ("second", SECOND))}
    monkeypatch.setenv("PULSA_DATABASE_URL", database_url)
    monkeypatch.setenv("PULSA_SECRET_KEYS", f"first:{keys['first']},second:{keys['second']}")
    monkeypatch.setenv("PULSA_SECRET_DIGEST_KEY", base64.b64encode(DIGEST).decode())

    needed = await asyncio.to_thread(main, ["rotate"])
    told = capsys.readouterr().out.splitlines()
    await old.rows("UPDATE otps SET expire_time = create_time RETURNING 1")
    free = await asyncio.to_thread(main, ["rotate"])

    assert (needed, told) == (
        1,
        [
            "destinations: 1 looked at, 1 sealed anew",
            "fallbacks: 0 looked at, 0 sealed anew",
            "first: still needed by 1 live OTPs; run this again in 10 minutes",
            "second: the current key",
        ],
    )
    assert (free, capsys.readouterr().out.splitlines()[2]) == (0, "first: may leave the ring")
