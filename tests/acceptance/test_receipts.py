"""Receipts, checked by the program in docs/receipts.md: without the server, with its public key only."""

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.json_format import MessageToJson

from server.credits.audit import audit_all, make_daily_macs
from server.credits.ledger import AuditKeys, adjust_credits
from server.credits.receipts import SigningKeys, sign_days
from server.ids import new_id
from server.postgres.pool import Pool
from tests.acceptance.deployment import Deployment
from tests.callers import reason_of

AUDIT_KEYS = AuditKeys({"test": b"k" * 32})
SIGNING_KEYS = SigningKeys({"first": b"1" * 32, "second": b"2" * 32})
PROGRAM = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "receipts.md").read_text(), re.DOTALL
)


async def add(pool: Pool, organization_id: str, credits: int, days_ago: int, reason: str = "test") -> None:
    await adjust_credits(
        pool,
        organization_id,
        request_id=new_id(),
        credits=credits,
        reason=reason,
        created_by="ann",
        low_balance_threshold=0,
        now=pool.now() - timedelta(days=days_ago),
        audit_keys=AUDIT_KEYS,
    )


async def end_day(pool: Pool, days_ago: int) -> None:
    """What the jobs do after the day before that one."""
    await make_daily_macs(pool, AUDIT_KEYS, now=pool.now() - timedelta(days=days_ago))


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """Runs the program of the docs on a receipt; returns its exit status, and what it printed."""
    [source] = PROGRAM
    assert len(source.splitlines()) <= 30
    (tmp_path / "check.py").write_text(source)

    def run(receipt: Any, key_id: str = "second") -> tuple[int, str]:
        key = tmp_path / "key.pem"
        key.write_text(SIGNING_KEYS.public_keys()[key_id])
        text = receipt if isinstance(receipt, str) else MessageToJson(receipt)
        command = [sys.executable, str(tmp_path / "check.py"), str(key)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)  # noqa: S603 - ours
        return done.returncode, done.stdout + done.stderr

    return run


async def test_every_entry_has_a_receipt_that_anyone_can_check(pulsa: Deployment, pool: Pool, check: Any) -> None:
    for number in range(1, 6):
        await add(pool, "acme", number, 3, 'für "uns" \\ 你好')
    await add(pool, "other", 7, 3)
    await end_day(pool, 2)
    await add(pool, "acme", -3, 2)
    await end_day(pool, 1)
    assert await reason_of(pulsa.call("GetReceipt", sequence=1)) == "RECEIPT_NOT_FOUND"
    assert await sign_days(pool, AUDIT_KEYS, SIGNING_KEYS) == 2
    assert await sign_days(pool, AUDIT_KEYS, SIGNING_KEYS) == 0

    receipts = [await pulsa.call("GetReceipt", sequence=number) for number in range(1, 7)]
    other = await pulsa.call("GetReceipt", "other", sequence=1)
    checked = [check(receipt) for receipt in (*receipts, other)]

    assert [status for status, _ in checked] == [0] * 7, checked
    assert "acme: entry 5, ADJUSTMENT +5, left 15 credits." in checked[4][1]
    assert "acme: entry 6, ADJUSTMENT -3, left 12 credits." in checked[5][1]
    assert "other: entry 1, ADJUSTMENT +7, left 7 credits." in checked[6][1]
    assert receipts[0].receipt.head == other.receipt.head != receipts[5].receipt.head
    assert await reason_of(pulsa.call("GetReceipt", sequence=7)) == "RECEIPT_NOT_FOUND"
    assert (await audit_all(pool, audit_keys=AUDIT_KEYS)).holds


async def test_a_receipt_that_was_changed_in_any_part_is_refused(pulsa: Deployment, pool: Pool, check: Any) -> None:
    for credits in (5, 6, 7):
        await add(pool, "acme", credits, 3)
        await add(pool, "other", credits, 3)
    await end_day(pool, 2)
    await sign_days(pool, AUDIT_KEYS, SIGNING_KEYS)
    good = json.loads(MessageToJson(await pulsa.call("GetReceipt", sequence=2)))
    another = json.loads(MessageToJson(await pulsa.call("GetReceipt", "other", sequence=2)))["receipt"]
    assert check(json.dumps(good))[0] == 0

    changes = {
        "entry": good["receipt"]["entry"].replace("ADJUSTMENT", "TOP_UP"),
        "head": good["receipt"]["head"].replace("head 1", "head 2"),
        "lastSequence": "4",
        "signature": good["receipt"]["signature"].replace(good["receipt"]["signature"][:4], "AAAA"),
        "entryPath": another["entryPath"],
        "ledgerPath": another["ledgerPath"],
    }
    accepted = {
        name
        for name, value in changes.items()
        if check(json.dumps({"receipt": good["receipt"] | {name: value}}))[0] == 0
    }
    assert accepted == set()
    assert check(json.dumps(good), key_id="first")[0] != 0


async def test_nothing_is_signed_that_is_not_as_its_mac_says(
    pulsa: Deployment, pool: Pool, database_url: str, check: Any
) -> None:
    await add(pool, "acme", 5, 3)
    await end_day(pool, 2)
    reason = "UPDATE ledger_entries SET reason = %s WHERE sequence = 1"
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(reason, ["edited"])
        assert await sign_days(pool, AUDIT_KEYS, SIGNING_KEYS) == 0
        owner.execute(reason, ["test"])
        assert await sign_days(pool, AUDIT_KEYS, SIGNING_KEYS) == 1
        assert check(await pulsa.call("GetReceipt", sequence=1))[0] == 0
        owner.execute(reason, ["edited"])
        assert await reason_of(pulsa.call("GetReceipt", sequence=1)) == "INTERNAL"
        owner.execute(reason, ["test"])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute("SET ROLE pulsa_application; DELETE FROM ledger_heads")
