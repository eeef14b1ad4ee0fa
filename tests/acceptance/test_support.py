"""What support and bookkeepers ask for: what happened to a destination, what a balance was, and the ledger by month."""

import asyncio
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp
from pulsa.credit.v1 import credit_service_pb2 as credit
from pulsa.credit.v1.channel_pb2 import CHANNEL_EMAIL, CHANNEL_SMS, CHANNEL_WHATSAPP
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.credit.v1.ledger_entry_pb2 import (
    LEDGER_ENTRY_KIND_ADJUSTMENT,
    LEDGER_ENTRY_KIND_SEND,
    LEDGER_ENTRY_KIND_TOP_UP,
)
from pulsa.otp.v1.otp_pb2 import OTP_STATUS_CANCELED, OTP_STATUS_EXPIRED, OTP_STATUS_PENDING

from tests.acceptance.deployment import Deployment
from tests.callers import reason_of
from tests.waiting import until

NUMBER = "+6281234567890"
APRIL = "2026-04-01"
# The fourth entry is older than the third, and in the middle, where the search of a time begins.
MONTHS = ("2026-01-20", "2026-02-10", "2026-03-01T00:00:00.1", "2026-02-28T23:59:59.9", APRIL, APRIL, APRIL)


def at(moment: datetime) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(moment)
    return time


async def otps(pulsa: Deployment, **filters: Any) -> list[str]:
    """The ids of all matching OTPs, page by page."""
    found: list[str] = []
    page = None
    while page is None or page.next_page_token:
        token = page.next_page_token if page else ""
        page = await pulsa.call("ListOtps", page_size=1, page_token=token, **filters)
        found += [otp.otp_id for otp in page.otps]
    return found


async def entries(pulsa: Deployment, **filters: Any) -> list[int]:
    """The sequences of all matching ledger entries, page by page."""
    found: list[int] = []
    page = None
    while page is None or page.next_page_token:
        token = page.next_page_token if page else ""
        page = await pulsa.call("ListLedgerEntries", page_size=1, page_token=token, **filters)
        found += [entry.sequence for entry in page.ledger_entries]
    return found


async def export(pulsa: Deployment, *, messages: int | None = None, **fields: str) -> tuple[list[str], str]:
    """The lines of an export and its last resume_token; of the first `messages` only, if given."""
    stub: Any = CreditServiceStub(pulsa.channel)
    metadata = (("authorization", f"Bearer {pulsa.token()}"),)
    request = credit.ExportLedgerRequest(organization_id="acme", **fields)
    text, token, count = b"", "", 0
    stream = stub.ExportLedger(request, metadata=metadata, timeout=30)
    async for message in stream:
        text, token, count = text + message.csv, message.resume_token, count + 1
        if count == messages:
            stream.cancel()
            break
    return text.decode().splitlines(), token


def move_entries(database_url: str, times: Iterable[str]) -> None:
    """Give the ledger's entries these times, in order."""
    with psycopg.connect(database_url) as connection:
        for sequence, time in enumerate(times, 1):
            connection.execute(
                "UPDATE ledger_entries SET create_time = %s WHERE sequence = %s", (f"{time}+00", sequence)
            )


async def test_a_destination_is_found_however_it_is_written_and_whichever_channel_it_had(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    sms = (await pulsa.send(sms=NUMBER)).otp.otp_id
    to_jane: Any = {"destination": {"email": "jane@mail.example"}, "purpose": "payment"}
    mail = (await pulsa.call("SendOtp", **to_jane)).otp.otp_id
    await pulsa.call("ResendOtp", otp_id=mail, destination={"whatsapp": NUMBER})
    await pulsa.send(sms="+6281234567891")

    assert await otps(pulsa, destination={"sms": "+62 812-3456-7890"}) == [mail, sms]
    assert await otps(pulsa, destination={"email": "Jane@mail.example"}) == [mail]
    assert await otps(pulsa, destination={"whatsapp": NUMBER}, channels=[CHANNEL_SMS]) == [sms]
    assert await otps(pulsa, destination={"email": "joe@mail.example"}) == []
    assert await reason_of(pulsa.call("ListOtps", destination={"sms": "12"})) == "INVALID_DESTINATION"
    await pulsa.call("EraseDestination", destination={"sms": NUMBER})
    assert await otps(pulsa, destination={"sms": NUMBER}) == []


async def test_otps_are_found_by_status_purpose_channel_and_time(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    first, second, third = [
        (await pulsa.call("SendOtp", destination={channel: to}, purpose=purpose)).otp
        for channel, to, purpose in (
            ("email", "a@mail.example", "login"),
            ("sms", NUMBER, "payment"),
            ("whatsapp", "+6281234567891", "login"),
        )
    ]
    await pulsa.call("CancelOtp", otp_id=third.otp_id)

    assert await otps(pulsa, purposes=["login"]) == [third.otp_id, first.otp_id]
    assert await otps(pulsa, otp_statuses=[OTP_STATUS_PENDING, OTP_STATUS_EXPIRED]) == [second.otp_id, first.otp_id]
    assert await otps(pulsa, otp_statuses=[OTP_STATUS_CANCELED], channels=[CHANNEL_WHATSAPP]) == [third.otp_id]
    assert await otps(pulsa, otp_statuses=[OTP_STATUS_EXPIRED]) == []
    assert await otps(pulsa, start_time=second.create_time) == [third.otp_id, second.otp_id]
    assert await otps(pulsa, end_time=second.create_time) == [first.otp_id]
    assert await otps(pulsa, start_time=second.create_time, channels=[CHANNEL_EMAIL]) == []


async def test_a_page_token_is_of_one_search(pulsa: Deployment) -> None:
    await pulsa.grant(100)
    for name in "ab":
        await pulsa.send(email=f"{name}@mail.example")
    token = (await pulsa.call("ListOtps", page_size=1, purposes=["login"])).next_page_token

    assert await reason_of(pulsa.call("ListOtps", page_token=token, purposes=["payment"])) == "INVALID_FIELDS"
    assert await reason_of(pulsa.call("ListOtps", page_token=token, purposes=["login"])) == ""


async def test_entries_are_found_by_kind_reference_and_time(pulsa: Deployment) -> None:
    top_up = await pulsa.order()
    await pulsa.pay(top_up)
    await pulsa.wait_for_balance(1000)
    delivery = (await pulsa.send(sms=NUMBER)).otp.deliveries[0]
    await pulsa.grant(5)
    await pulsa.send(email="jane@mail.example")
    listed = {entry.sequence: entry for entry in (await pulsa.call("ListLedgerEntries")).ledger_entries}

    assert await entries(pulsa, kinds=[LEDGER_ENTRY_KIND_SEND]) == [4, 2]
    assert await entries(pulsa, kinds=[LEDGER_ENTRY_KIND_TOP_UP, LEDGER_ENTRY_KIND_ADJUSTMENT]) == [3, 1]
    assert await entries(pulsa, kinds=[LEDGER_ENTRY_KIND_SEND, LEDGER_ENTRY_KIND_TOP_UP]) == [4, 2, 1]
    assert await entries(pulsa, reference_id=top_up.top_up_id) == [1]
    assert await entries(pulsa, reference_id=delivery.delivery_id) == [2]
    assert await entries(pulsa, reference_id=delivery.delivery_id, kinds=[LEDGER_ENTRY_KIND_TOP_UP]) == []
    assert await entries(pulsa, start_time=listed[3].create_time) == [4, 3]
    assert await entries(pulsa, end_time=listed[3].create_time, kinds=[LEDGER_ENTRY_KIND_SEND]) == [2]
    assert await entries(pulsa, start_time=listed[2].create_time, end_time=listed[4].create_time) == [3, 2]


async def test_the_balance_of_every_time_is_known(pulsa: Deployment) -> None:
    for credits in (100, 20, -5):
        await pulsa.call("AdjustCredits", adjust_credits=credits, reason="for a test")
    listed = (await pulsa.call("ListLedgerEntries")).ledger_entries

    async def balance_at(time: Timestamp) -> tuple[int, int]:
        balance = (await pulsa.call("GetBalance", time=time)).balance
        return balance.available_credits, balance.last_sequence

    before = at(listed[-1].create_time.ToDatetime() - timedelta(microseconds=1))
    assert [await balance_at(entry.create_time) for entry in listed] == [(115, 3), (120, 2), (100, 1)]
    assert await balance_at(before) == (0, 0)
    assert await balance_at(at(datetime.now(UTC) + timedelta(days=1))) == (115, 3)
    assert await balance_at(Timestamp(seconds=253_402_300_799)) == (115, 3)


async def test_the_runway_is_what_the_spending_of_a_week_leaves(pulsa: Deployment, database_url: str) -> None:
    await pulsa.grant(70)
    assert not (await pulsa.call("GetBalance", with_runway=True)).balance.HasField("runway_days")
    await pulsa.send(sms=NUMBER)
    await pulsa.send(email="jane@mail.example")
    # 4 of the first day are spent: 66 last 16 days. Then 7 days have passed, and the top-up is older than those.
    assert (await pulsa.call("GetBalance", with_runway=True)).balance.runway_days == 16
    days_ago = (datetime.now(UTC) - timedelta(days=number) for number in (30, 6, 5))
    move_entries(database_url, (f"{time:%Y-%m-%dT%H:%M:%S}" for time in days_ago))
    assert (await pulsa.call("GetBalance", with_runway=True)).balance.runway_days == 66 * 7 // 4
    assert not (await pulsa.call("GetBalance")).balance.HasField("runway_days")


async def test_an_export_has_each_month_with_its_balances_entries_and_invoices(
    pulsa: Deployment, database_url: str
) -> None:
    top_up = await pulsa.order()
    await pulsa.pay(top_up)
    await pulsa.wait_for_balance(1000)
    invoice = (await pulsa.call("GetTopUp", top_up_id=top_up.top_up_id)).top_up.invoice_number
    await pulsa.call("AdjustCredits", adjust_credits=-10, reason='a "typo", fixed')
    for name in "abcde":
        await pulsa.send(email=f"{name}@mail.example")
    references = [entry.reference_id for entry in reversed((await pulsa.call("ListLedgerEntries")).ledger_entries)]
    move_entries(database_url, MONTHS)

    lines, token = await export(pulsa, end_month="2026-04")

    assert token == ""
    assert lines == [
        "month,kind,sequence,create_time,credits,balance,reference_id,reason,created_by,invoice_number,currency_code,total",
        "2026-01,OPENING_BALANCE,,2026-01-01 00:00:00Z,,0,,,,,,",
        f'2026-01,TOP_UP,1,2026-01-20 00:00:00Z,1000,1000,{top_up.top_up_id},,,"{invoice}",IDR,150000',
        "2026-01,CLOSING_BALANCE,,2026-02-01 00:00:00Z,,1000,,,,,,",
        "2026-02,OPENING_BALANCE,,2026-02-01 00:00:00Z,,1000,,,,,,",
        f'2026-02,ADJUSTMENT,2,2026-02-10 00:00:00Z,-10,990,{references[1]},"a ""typo"", fixed","ann",,,',
        "2026-02,CLOSING_BALANCE,,2026-03-01 00:00:00Z,,990,,,,,,",
        "2026-03,OPENING_BALANCE,,2026-03-01 00:00:00Z,,990,,,,,,",
        f"2026-03,SEND,3,2026-03-01 00:00:00.1Z,-1,989,{references[2]},,,,,",
        f"2026-03,SEND,4,2026-02-28 23:59:59.9Z,-1,988,{references[3]},,,,,",
        "2026-03,CLOSING_BALANCE,,2026-04-01 00:00:00Z,,988,,,,,,",
        "2026-04,OPENING_BALANCE,,2026-04-01 00:00:00Z,,988,,,,,,",
        *(
            f"2026-04,SEND,{number},2026-04-01 00:00:00Z,-1,{992 - number},{references[number - 1]},,,,,"
            for number in (5, 6, 7)
        ),
        "2026-04,CLOSING_BALANCE,,2026-05-01 00:00:00Z,,985,,,,,,",
    ]
    assert (await export(pulsa, start_month="2026-02", end_month="2026-03"))[0] == [lines[0], *lines[4:11]]
    assert (await export(pulsa, start_month="2025-01", end_month="2026-01"))[0] == lines[:4]
    assert (await export(pulsa, start_month="2026-05", end_month="2026-04"))[0] == lines[:1]


async def test_an_export_is_resumed_after_every_message(pulsa: Deployment, database_url: str) -> None:
    await pulsa.grant(10)
    await pulsa.grant(20)
    await pulsa.grant(30)
    move_entries(database_url, ("2026-01-20", "2026-02-10", "2026-04-01"))
    whole, _ = await export(pulsa)
    assert whole[-1].startswith(f"{datetime.now(UTC):%Y-%m},CURRENT_BALANCE,,,,60")

    found, token = await export(pulsa, messages=1)
    steps = 1
    while token:
        await pulsa.grant(1)  # after the export began: not in it
        more, token = await export(pulsa, messages=1, resume_token=token)
        found, steps = found + more, steps + 1

    assert (found, steps) == (whole, 4)
    refused = pulsa.call("ExportLedger", resume_token="0" * 32)
    assert await reason_of(refused) == "INVALID_FIELDS"


async def run_export(database_url: str, *arguments: object) -> tuple[int, str]:
    """The exit code of `python -m server export acme …`, and its last line on standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "server", "export", "acme", *map(str, arguments)),
        env={**os.environ, "PULSA_DATABASE_URL": database_url, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode().strip().splitlines()[-1]


async def test_the_command_writes_what_the_rpc_streams_and_goes_on_after_an_interruption(
    pulsa: Deployment, database_url: str, tmp_path: Path
) -> None:
    await pulsa.grant(10)
    await pulsa.grant(20)
    move_entries(database_url, ("2026-01-20", "2026-03-10"))
    file, partial = tmp_path / "ledger.csv", tmp_path / "ledger.csv.acme..2026-05.partial"
    lines, _ = await export(pulsa, end_month="2026-05")
    whole = "".join(f"{line}\n" for line in lines).encode()
    begun = whole[: whole.index(b"2026-03,ADJUSTMENT") + 5]
    marked = begun.replace(b"for a test", b"a mark")  # what is written already is not written again

    assert await run_export(database_url, file, "--end", "2026-05") == (0, "2 of 2 entries")
    assert (file.read_bytes(), partial.exists()) == (whole, False)
    partial.write_bytes(marked)
    assert await run_export(database_url, file, "--end", "2026-05") == (0, "2 of 2 entries")
    assert file.read_bytes() == marked[:-5] + whole[len(begun) - 5 :]


async def test_the_command_writes_parquet_or_names_what_it_lacks(
    pulsa: Deployment, database_url: str, tmp_path: Path
) -> None:
    await pulsa.grant(10)
    move_entries(database_url, ("2026-01-20",))
    file = tmp_path / "ledger.parquet"

    code, line = await run_export(database_url, file, "--format", "parquet", "--end", "2026-01")

    if find_spec("pyarrow") is None:
        assert (code, line.partition(": ")[2]) == (2, "pip install 'pulsa-server[export]'")
        return
    first = file.read_bytes()
    rows = import_module("pyarrow.parquet").read_table(file).to_pylist()
    assert [(row["kind"], row["sequence"], row["balance"]) for row in rows] == [
        ("OPENING_BALANCE", None, 0),
        ("ADJUSTMENT", 1, 10),
        ("CLOSING_BALANCE", None, 10),
    ]
    assert rows[1]["create_time"] == datetime(2026, 1, 20, tzinfo=UTC)
    assert await run_export(database_url, file, "--format", "parquet", "--end", "2026-01") == (0, "1 of 1 entries")
    assert file.read_bytes() == first


async def test_usage_tells_what_became_of_sends_by_country_and_provider(pulsa: Deployment, database_url: str) -> None:
    await pulsa.grant(100)
    sent = await pulsa.send(sms=NUMBER)
    await pulsa.send(email="jane@mail.example")
    days = dict.fromkeys(("start_date", "end_date"), f"{datetime.now(UTC):%Y-%m-%d}")
    assert not (await pulsa.call("GetUsage", **days)).HasField("credits_per_verified_otp")
    await pulsa.call("VerifyOtp", otp_id=sent.otp.otp_id, code=await pulsa.code_sent_to(NUMBER))
    await pulsa.code_sent_to("jane@mail.example")

    async def is_carried() -> bool:
        listed = (await pulsa.call("ListOtps")).otps
        return all(otp.deliveries[0].provider for otp in listed)

    await until(is_carried)
    usage = await pulsa.call("GetUsage", with_conversions=True, **days)

    assert (usage.credits_per_verified_otp, usage.conversions_start_date) == (4.0, days["start_date"])
    assert [
        (each.country, each.channel, each.provider, each.sends, each.credits, each.verified_sends)
        for each in usage.conversions
    ] == [("", CHANNEL_EMAIL, "console", 1, 1, 0), ("ID", CHANNEL_SMS, "console", 1, 3, 1)]

    with psycopg.connect(database_url) as connection:  # as retention does when it removes OTPs of the day
        connection.execute("INSERT INTO daily_usage VALUES ('acme', %s, 'SMS', 5, 15, 5, 0)", (days["end_date"],))
    usage = await pulsa.call("GetUsage", with_conversions=True, **days)
    assert (usage.conversions_start_date > days["end_date"], list(usage.conversions)) == (True, [])
