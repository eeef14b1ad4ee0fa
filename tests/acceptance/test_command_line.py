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

CLIENT = Path(__file__).parents[2] / "clients" / "python"
Run = Callable[..., Any]


@pytest.fixture
def run(pulsa: Deployment) -> Run:
    """Runs a command, and returns its exit status and what it printed on stdout and stderr."""

    async def run(*arguments: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pulsa.cli", "--server", pulsa.address, "--organization", "acme", *arguments),
            env=os.environ | {"PULSA_TOKEN": pulsa.token(), "PYTHONPATH": str(CLIENT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, complaints = await process.communicate()
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
