"""The command `pulsa` against the whole server."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.acceptance.deployment import Deployment
from tests.waiting import until

CLIENT = Path(__file__).parents[2] / "clients" / "python"
Run = Callable[..., Any]


async def start(pulsa: Deployment, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pulsa.cli", "--server", pulsa.address, "--organization", "acme", *arguments),
        env=os.environ | {"PULSA_TOKEN": pulsa.token(), "PYTHONPATH": str(CLIENT)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
def run(pulsa: Deployment) -> Run:
    """Runs a command, with a text on stdin; returns its exit status and what it printed on stdout and stderr."""

    async def run(*arguments: str, given: str = "") -> tuple[int | None, str, str]:
        process = await start(pulsa, *arguments)
        printed, complaints = await process.communicate(given.encode())
        return process.returncode, printed.decode(), complaints.decode()

    return run


async def test_credits_are_quoted_ordered_and_shown_as_tables(pulsa: Deployment, run: Run) -> None:
    _, quote, _ = await run("quote", "1000", "IDR")
    assert [line.split() for line in quote.splitlines()] == [
        ["CREDITS", "SUBTOTAL", "TAX", "TOTAL"],
        ["1000", "IDR", "150000", "IDR", "0", "IDR", "150000"],
    ]
    _, ordered, _ = await run("top-up", "1000", "IDR", "--billing-email", "billing@example.com")
    assert "OPEN" in ordered
    assert "http" in ordered
    await pulsa.grant(7)
    _, balance, _ = await run("balance")
    assert balance.splitlines()[1].split()[0] == "7"


async def test_a_code_is_sent_once_and_verified_and_the_history_has_the_charge(pulsa: Deployment, run: Run) -> None:
    await pulsa.grant(7)
    send = ("send", "ann@example.com", "--request-id", str(uuid4()))
    _, sent, _ = await run(*send)
    assert await run(*send) == (0, sent, "")
    assert await pulsa.balance() == 6
    otp_id = sent.splitlines()[1].split()[0]
    status, _, refusal = await run("verify", otp_id, "wrong")
    assert status == 1
    assert refusal.startswith("pulsa: WRONG_CODE: ")
    assert "(attempts_remaining 4)" in refusal
    code = await pulsa.code_sent_to("ann@example.com")
    _, verified, _ = await run("verify", otp_id, code)
    assert verified.splitlines()[1].split() == [otp_id, "VERIFIED"]
    _, history, _ = await run("--json", "history", "--limit", "1")
    assert [json.loads(line)["kind"] for line in history.splitlines()] == ["LEDGER_ENTRY_KIND_SEND"]


async def test_many_codes_are_sent_in_one_batch_and_again_without_a_charge(pulsa: Deployment, run: Run) -> None:
    await pulsa.grant(2)
    people = ("ann@example.com", "bob@example.com", "cid@example.com")
    send = ("send", *people, "--request-id", str(uuid4()))
    status, sent, _ = await run(*send)
    rows = [line.split() for line in sent.splitlines()[1:]]
    assert status == 1
    assert [row[-1] for row in rows] == ["1", "1", "INSUFFICIENT_CREDITS"]
    assert rows[2] == ["EMAIL", "cid@example.com", "0", "INSUFFICIENT_CREDITS"]
    await pulsa.grant(5)
    status, again, _ = await run(*send)
    assert status == 0
    assert again.splitlines()[:3] == sent.splitlines()[:3]
    assert await pulsa.balance() == 4
    _, piped, _ = await run("send", "-", "--request-id", send[-1], given="\n".join((*people, "")))
    assert piped == again


async def test_the_otps_of_a_person_are_found(pulsa: Deployment, run: Run) -> None:
    await pulsa.grant(7)
    for email in ("ann@example.com", "bob@example.com"):
        await pulsa.send(email=email)
    _, found, _ = await run("find", "Ann@Example.com")
    header, row = found.splitlines()
    assert header.split() == ["OTP", "TIME", "(UTC)", "PURPOSE", "STATUS", "DELIVERIES"]
    assert row.split()[3:7] == ["login", "PENDING", "EMAIL", "a***@example.com"]
    _, both, _ = await run("--json", "find", "--status", "PENDING", "--purpose", "login", "--since", "2026-01-01")
    assert len(both.splitlines()) == 2
    for filters in (["--status", "VERIFIED"], ["--purpose", "payment"], ["--until", "2026-01-01"], ["c@example.com"]):
        _, none, _ = await run("--json", "find", *filters)
        assert none == ""
    _, pages, _ = await run("--json", "find", "--limit", "1")
    assert json.loads(pages)["deliveries"][0]["maskedDestination"] == "b***@example.com"


async def test_events_are_shown_as_they_happen(pulsa: Deployment, run: Run) -> None:
    status, _, refusal = await run("events")
    assert (status, "EVENTS_OFF" in refusal) == (1, True)
    cursor = (await pulsa.call("EnableEvents")).cursor
    await pulsa.grant(7)
    await pulsa.call("UpdateAlerts", low_balance_threshold=5)

    for arguments in (("--from-oldest",), ("--cursor", cursor)):
        process = await start(pulsa, "events", *arguments)
        assert process.stdout is not None
        header, event = [(await process.stdout.readline()).decode().rstrip().split("\t") for _ in range(2)]
        process.terminate()
        await process.wait()
        assert header == ["NUMBER", "TIME (UTC)", "CHANGE", "DETAILS", "CURSOR"]
        assert (event[0], event[2]) == ("1", "balance_recovered")
        assert json.loads(event[3])["availableCredits"] == "7"
    status, _, refusal = await run("events", "--cursor", event[4][:-4])
    assert (status, "INVALID_FIELDS" in refusal) == (1, True)


async def test_what_is_wrong_is_said_in_plain_words(run: Run) -> None:
    status, printed, refusal = await run("send", "ann@example.com")
    assert (status, printed) == (1, "")
    assert "INSUFFICIENT_CREDITS" in refusal
    assert "(available_credits 0, required_credits 1)" in refusal
    _, _, invalid = await run("verify", "no id", "123456")
    assert "\n  otp_id: a UUID" in invalid
    status, _, unreachable = await run("--server", "127.0.0.1:1", "--timeout", "0.2", "send", "ann@example.com")
    assert status == 1
    assert "--request-id" in unreachable
    assert "Traceback" not in unreachable


async def test_settings_are_changed_shown_and_reset(pulsa: Deployment, run: Run) -> None:
    _, changed, _ = await run("settings", "brand_name=Acme", "code_length=8", 'blocked_areas=["GB"]')
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in changed.splitlines()}
    assert (rows["brand_name"], rows["code_length"], rows["blocked_areas"]) == ("Acme", "8", '["GB"]')
    assert await run("settings") == (0, changed, "")
    _, reset, _ = await run("settings", "code_length=")
    assert {line.split()[0]: line.split()[1] for line in reset.splitlines()}["code_length"] == "6"
    status, _, complaint = await run("settings", "nothing=1")
    assert status == 2
    assert complaint.startswith("pulsa: ")
    [line] = (await run("--json", "settings"))[1].splitlines()
    assert json.loads(line)["brandName"] == "Acme"
    assert (await pulsa.call("GetSettings")).current.version == 2


async def test_a_card_is_saved_and_automatic_top_ups_are_shown_and_switched_on(pulsa: Deployment, run: Run) -> None:
    page = ("card", "--billing-email", "billing@example.com", "--return-url", "https://app.example.com/")
    _, printed, _ = await run(*page)
    url = printed.splitlines()[1].split()[0]
    async with pulsa.browser.post(f"{url}/works", allow_redirects=False) as answer:
        assert answer.status == 303

    async def is_saved() -> bool:
        return "4242" in (await run("automatic"))[1]

    await until(is_saved)
    settings = ("threshold_credits=1", "credits=1000", "currency_code=USD", "monthly_credit_cap=1000", "enabled=true")
    status, _, refusal = await run("automatic", *settings)
    assert (status, "billing_email" in refusal) == (1, True)
    agreed = ("billing_email=billing@example.com", "--consent", "Charge us.")
    _, shown, _ = await run("automatic", *settings, *agreed)
    assert "AUTOMATIC_TOP_UP_STATE_" in shown
    assert "Charge us." in shown
    await pulsa.wait_for_balance(1000)
