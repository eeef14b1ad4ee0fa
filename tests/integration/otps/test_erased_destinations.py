"""Erasing one destination: nothing that leads to the person stays, and the ledger stays as it is."""

import asyncio
import io
import sys
from base64 import b64encode

import psycopg
import pytest
from psycopg import sql

from server.__main__ import main
from server.errors import InvalidDestination, OtpCanceled
from server.otps.otp import OtpStatus
from server.otps.recipients import RawDestination, RecipientResolver
from server.otps.retention import erase_destination
from server.postgres.pool import acquire
from server.providers.provider import Channel, OutcomeKind
from tests.integration.otps.replica import CRYPTO, Replica, fund, ledger, stored, wrong

ANN, BOB, NUMBER = "ann.smith@example.com", "bob@example.com", "+6281234567890"
TRACES = (ANN, "a***@example.com", CRYPTO.digest(ANN).hex(), NUMBER, CRYPTO.digest(NUMBER).hex(), "+62*********90")


async def erase(replica: Replica, destination: str, channel: Channel = Channel.EMAIL) -> int:
    normalized = (
        RecipientResolver(replica.crypto, {}).parse(RawDestination(channel, destination, "destination")).normalized
    )
    return await erase_destination(replica.pool, replica.crypto, "acme", normalized)


def traces(database_url: str) -> set[str]:
    """What of the two destinations is in any table, sealed values too."""
    with psycopg.connect(database_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        text = ""
        for (table,) in tables:
            rows = sql.SQL("SELECT whole::text FROM {} AS whole").format(sql.Identifier(table))
            text += "".join(row[0] for row in connection.execute(rows))
        sealed = connection.execute(
            "SELECT destination_sealed FROM deliveries WHERE destination_sealed <> ''"
        ).fetchall()
    opened = {CRYPTO.unseal(one, organization_id="acme") for (one,) in sealed}
    return {trace for trace in TRACES if trace in text} | (opened & {ANN, NUMBER})


async def test_nothing_of_the_destination_stays_and_the_ledger_is_untouched(
    replica: Replica, database_url: str
) -> None:
    await fund(replica.pool, 100)
    verified, guessed, other = await replica.send(ANN), await replica.send(ANN), await replica.send(BOB)
    await replica.verify(verified.record.otp)
    await asyncio.gather(replica.verify(guessed.record.otp, wrong(guessed.record.otp)), return_exceptions=True)
    for send in (verified, other):
        await replica.record_outcome(send, OutcomeKind.ACCEPTED)
    # Also sent to the person, after another destination.
    await replica.resend(other.record.otp, destination=RawDestination(Channel.EMAIL, ANN.title(), "destination"))
    before = await ledger(replica.pool)
    assert traces(database_url) == {*TRACES[:3]}

    counts = [await erase(replica, ANN), await erase(replica, ANN)]

    assert (counts, traces(database_url)) == ([3, 0], set())
    assert await ledger(replica.pool) == before
    records = [await stored(replica.pool, one.record.otp) for one in (verified, guessed, other)]
    assert [one.otp.status for one in records] == [OtpStatus.VERIFIED, OtpStatus.CANCELED, OtpStatus.CANCELED]
    assert [one.otp.metadata for one in records] == [{}] * 3
    assert [one.masked_destination for one in records[2].deliveries] == ["b***@example.com", ""]
    with pytest.raises(OtpCanceled):
        await replica.verify(guessed.record.otp)
    await replica.send(ANN)


async def test_other_destinations_and_organizations_keep_theirs(replica: Replica) -> None:
    await fund(replica.pool, 10)
    await fund(replica.pool, 10, organization_id="other")
    sends = [await replica.send(BOB), await replica.send(ANN, organization_id="other")]
    assert await erase(replica, ANN) == 0
    assert [await stored(replica.pool, one.record.otp) for one in sends] == [one.record for one in sends]


async def test_a_number_is_one_destination_for_both_channels_in_any_spelling(
    replica: Replica, database_url: str
) -> None:
    await fund(replica.pool, 10)
    for channel in (Channel.SMS, Channel.WHATSAPP):
        await replica.send(NUMBER, channel=channel)
    assert await erase(replica, "+62 812 3456 7890", Channel.SMS) == 2
    assert traces(database_url) == set()
    with pytest.raises(InvalidDestination):
        await erase(replica, "nobody", Channel.SMS)


async def test_the_command_reads_the_destination_from_standard_input(
    replica: Replica, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await fund(replica.pool, 10)
    await replica.send(ANN)
    monkeypatch.setenv("PULSA_DATABASE_URL", database_url)
    monkeypatch.setenv("PULSA_SECRET_KEYS", f"k1:{b64encode(b'1' * 32).decode()}")
    monkeypatch.setenv("PULSA_SECRET_DIGEST_KEYS", f"d1:{b64encode(b'2' * 32).decode()}")
    codes = []
    for line in (ANN, "no address"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\n"))
        codes.append(await asyncio.to_thread(main, ["erase", "acme", "email"]))
    codes += [
        await asyncio.to_thread(main, arguments)
        for arguments in (["suspend", "acme", "--reason", "abuse"], ["resume", "acme"], ["resume", "acme"])
    ]
    printed = capsys.readouterr()
    assert codes == [0, 2, 0, 0, 0]
    assert traces(database_url) == set()
    assert ("erased from 1 deliveries" in printed.out, ANN in printed.out + printed.err) == (True, False)
    assert "acme: suspended since " in printed.out
    assert printed.out.splitlines()[-2:] == ["acme: no longer suspended", "acme: was not suspended"]
    async with acquire(replica.pool) as connection:
        cursor = await connection.execute("SELECT suspend_time, suspend_reason, suspended_by FROM accounts")
        assert await cursor.fetchall() == [(None, None, None)]
