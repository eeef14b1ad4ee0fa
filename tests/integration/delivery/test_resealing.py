"""Key rotation: what an old key sealed is sealed under the current one while servers go on working."""

import asyncio
import base64
from datetime import timedelta

import pytest

from server.__main__ import main
from server.otps.crypto import Crypto
from server.otps.key_rotation import COLUMNS, Column, Progress, find_needed_keys, reseal
from server.otps.otp import DeliveryStatus
from server.otps.recipients import RawDestination
from server.otps.retention import erase_destinations
from server.postgres.pool import Pool
from server.providers.provider import Channel
from server.sandbox.providers import whatsapp_error
from tests.integration.delivery.harness import EMAIL, LEASE, SMS, WHATSAPP, OpenHarness, ProviderStandIns

FIRST, SECOND, DIGEST = b"1" * 32, b"3" * 32, b"2" * 32
OLD = Crypto({"first": FIRST}, digest_secrets={"d1": DIGEST})
BOTH = Crypto({"first": FIRST, "second": SECOND}, digest_secrets={"d1": DIGEST})
NEW = Crypto({"second": SECOND}, digest_secrets={"d1": DIGEST})
DESTINATIONS, FALLBACKS = COLUMNS


async def resealed(pool: Pool, column: Column, crypto: Crypto = BOTH, *, at_once: int = 500) -> list[Progress]:
    return [progress async for progress in reseal(pool, crypto, column, batch_size=at_once)]


def email(number: int) -> RawDestination:
    return EMAIL._replace(text=f"person-{number}@example.com")


async def test_resealed_destinations_open_with_the_new_key_alone(open_harness: OpenHarness) -> None:
    old = open_harness(crypto=OLD, dispatches=False)
    await old.fund(100)
    sent = [await old.send(email(number)) for number in range(5)]

    steps = await resealed(old.pool, DESTINATIONS, at_once=2)
    again = await resealed(old.pool, DESTINATIONS)

    assert steps == [Progress(2, 2), Progress(4, 4), Progress(5, 5)]
    assert again == [Progress(5, 0)]
    for number, one in enumerate(sent):
        (delivery,) = await old.deliveries(one)
        assert NEW.unseal(delivery.destination_sealed or b"", organization_id="acme") == f"person-{number}@example.com"


async def test_resealed_fallbacks_are_sent_after_their_key_was_removed(
    open_harness: OpenHarness, stand_ins: ProviderStandIns
) -> None:
    old = open_harness(crypto=OLD, dispatches=False)
    await old.fund(100)
    # A code needs the key that it was made with, so a server with both keys makes this one.
    accepted = await open_harness(crypto=BOTH, clock=old.clock, dispatches=False).send(WHATSAPP, SMS)
    await old.rows(
        "UPDATE outbox SET fallbacks_sealed = %s RETURNING 1",
        OLD.seal(f'[["SMS", "{SMS.text}"]]', organization_id="acme"),
    )
    stand_ins.sandbox.play("whatsapp", whatsapp_error(131026))

    steps = await resealed(old.pool, FALLBACKS)
    await open_harness(crypto=NEW, clock=old.clock).take_over(after=LEASE)

    assert steps == [Progress(1, 1)]
    assert [(one.channel, one.status) for one in await old.deliveries(accepted)] == [
        (Channel.WHATSAPP, DeliveryStatus.FAILED),
        (Channel.SMS, DeliveryStatus.SENT),
    ]


async def test_values_that_no_key_opens_and_erased_values_stay_unchanged(open_harness: OpenHarness) -> None:
    harness = open_harness(crypto=OLD)
    await harness.fund(100)
    await harness.deliver(email(1))
    erased = erase_destinations(harness.pool, before=harness.clock() + timedelta(days=1), limit=10)
    assert [count async for count in erased] == [1]
    await harness.deliver(email(2))
    before = await harness.rows("SELECT destination_sealed FROM deliveries ORDER BY delivery_id")

    steps = await resealed(harness.pool, DESTINATIONS, NEW)

    assert steps == [Progress(1, 0, unreadable=1)]
    assert await harness.rows("SELECT destination_sealed FROM deliveries ORDER BY delivery_id") == before


async def test_needed_keys_are_listed_with_what_needs_them(open_harness: OpenHarness) -> None:
    old = open_harness(crypto=OLD, dispatches=False)
    await old.fund(100)
    await old.send(WHATSAPP, SMS)
    await open_harness(crypto=BOTH, clock=old.clock, dispatches=False).send(EMAIL)
    needed = await find_needed_keys(old.pool, now=old.clock())
    for column in COLUMNS:
        await resealed(old.pool, column)

    assert needed == {
        "first": {"destinations": 1, "fallbacks": 1, "live OTPs": 1},
        "second": {"destinations": 1, "live OTPs": 1},
    }
    assert (await find_needed_keys(old.pool, now=old.clock()))["first"] == {"live OTPs": 1}
    assert set(await find_needed_keys(old.pool, now=old.clock() + timedelta(minutes=6))) == {"second"}


async def test_a_rotation_during_sends_loses_nothing(open_harness: OpenHarness, stand_ins: ProviderStandIns) -> None:
    old = open_harness(crypto=OLD, dispatches=False)
    await old.fund(1000)
    left = [await old.send(email(number)) for number in range(40)]
    # As after a restart with both keys: it takes over the waiting deliveries and accepts new sends.
    server = open_harness(crypto=BOTH, clock=old.clock)

    async def keep_rotating(column: Column) -> None:
        while rotating:
            await resealed(old.pool, column, at_once=7)

    rotating = True
    rotations = [asyncio.create_task(keep_rotating(column)) for column in COLUMNS * 2]
    taken = await server.take_over(after=LEASE)
    sent = await asyncio.gather(*(server.send(email(number), SMS) for number in range(100, 160)))
    await server.idle()
    rotating = False
    await asyncio.gather(*rotations)

    assert taken == 40
    assert len(stand_ins.relay.mails) == 100
    for one in [*left, *sent]:
        (delivery,) = await server.deliveries(one)
        assert delivery.status is DeliveryStatus.SENT
        assert NEW.unseal(delivery.destination_sealed or b"", organization_id="acme").startswith("person-")


async def test_the_command_says_when_a_key_may_be_removed(
    open_harness: OpenHarness, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = open_harness(crypto=OLD, dispatches=False)
    await old.fund(100)
    await old.send(EMAIL, ttl=timedelta(seconds=30))
    await old.rows("UPDATE requests SET create_time = now() - interval '2 hours' RETURNING 1")
    keys = {name: base64.b64encode(key).decode() for name, key in (("first", FIRST), ("second", SECOND))}
    monkeypatch.setenv("PULSA_DATABASE_URL", database_url)
    monkeypatch.setenv("PULSA_SECRET_KEYS", f"first:{keys['first']},second:{keys['second']}")
    monkeypatch.setenv("PULSA_SECRET_DIGEST_KEYS", f"d1:{base64.b64encode(DIGEST).decode()},d2:{keys['second']}")

    needed = await asyncio.to_thread(main, ["rotate"])
    lines = capsys.readouterr().out.splitlines()
    ((used,),) = await old.rows("SELECT create_time FROM requests WHERE rpc = 'SendOtp'")
    until = used + timedelta(hours=24, minutes=10)
    await old.rows("UPDATE otps SET expire_time = create_time RETURNING 1")
    # They count for a day, and for the 10 minutes that an OTP lives.
    await old.rows("UPDATE requests SET create_time = now() - interval '24 hours 11 minutes' RETURNING 1")
    free = await asyncio.to_thread(main, ["rotate"])

    assert (needed, lines) == (
        1,
        [
            "destinations: 1 checked, 1 re-encrypted",
            "fallbacks: 0 checked, 0 re-encrypted",
            "first: still needed by 1 live OTPs; run this again in 10 minutes",
            "second: the current key",
            f"digest key d1: still needed until {until:%Y-%m-%d %H:%M} UTC; run this again then",
            "digest key d2: the current key",
        ],
    )
    assert (free, capsys.readouterr().out.splitlines()[2:]) == (
        0,
        [
            "first: no longer needed",
            "second: the current key",
            "digest key d1: no longer needed",
            "digest key d2: the current key",
        ],
    )
