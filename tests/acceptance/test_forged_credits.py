"""Credits that were written past the server: VerifyLedger finds them, and only them."""

import asyncio

import psycopg

from tests.acceptance.deployment import Deployment

FORGED = """
    UPDATE accounts SET available_credits = available_credits + 500, last_sequence = last_sequence + 1;
    INSERT INTO ledger_entries
    SELECT organization_id, last_sequence, 'ADJUSTMENT', 500, available_credits, gen_random_uuid(), 'goodwill', 'ann',
        now()
    FROM accounts;
"""


async def test_a_forged_adjustment_is_found_among_real_ones(pulsa: Deployment, database_url: str) -> None:
    await pulsa.call("AdjustCredits", adjust_credits=100, reason="first")
    await pulsa.pay(
        (await pulsa.call("CreateTopUp", credits=1000, currency_code="IDR", billing_email="b@example.com")).top_up
    )
    await pulsa.wait_for_balance(1100)
    before = await pulsa.call("VerifyLedger")
    async with await psycopg.AsyncConnection.connect(database_url) as login:
        await login.execute(FORGED.encode())
    await pulsa.call("AdjustCredits", adjust_credits=-600, reason="last")

    after = await pulsa.call("VerifyLedger")

    assert before.holds
    assert (await pulsa.balance(), list(after.findings)) == (1000, ["forged_entry: entry 3: it has no MAC"])


async def test_a_server_with_a_key_makes_daily_macs(pulsa: Deployment) -> None:
    await pulsa.balance()  # it serves
    assert "job daily MACs" in {task.get_name() for task in asyncio.all_tasks()}
