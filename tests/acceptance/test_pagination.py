"""Lists are paged: each row once, newest first, even when rows are added between two pages."""

from typing import Any

from tests.acceptance.deployment import Deployment


async def pages(pulsa: Deployment, rpc: str, rows: str, **fields: Any) -> list[list[Any]]:
    """All pages of a list. A ledger entry is added after the first page; it is not in the later pages."""
    found: list[list[Any]] = []
    token = ""
    while not found or token:
        page = await pulsa.call(rpc, page_size=2, page_token=token, **fields)
        found.append(list(getattr(page, rows)))
        token = page.next_page_token
        if len(found) == 1:
            await pulsa.grant(1)
    return found


async def test_the_ledger_is_paged_while_it_grows(pulsa: Deployment) -> None:
    for _ in range(5):
        await pulsa.grant(10)

    found = await pages(pulsa, "ListLedgerEntries", "ledger_entries")

    assert [[entry.sequence for entry in page] for page in found] == [[5, 4], [3, 2], [1]]


async def test_the_history_of_top_ups_is_paged(pulsa: Deployment) -> None:
    made = []
    for _ in range(4):
        made.append((await pulsa.order()).top_up_id)
        await pulsa.call("CancelTopUp", top_up_id=made[-1])

    found = await pages(pulsa, "ListTopUps", "top_ups")

    assert [[top_up.top_up_id for top_up in page] for page in found] == [made[3:1:-1], made[1::-1]]


async def test_otps_are_paged(pulsa: Deployment) -> None:
    await pulsa.grant(10)
    made = [(await pulsa.send(email=f"j{number}@mail.example")).otp.otp_id for number in range(3)]

    found = await pages(pulsa, "ListOtps", "otps")

    assert [[otp.otp_id for otp in page] for page in found] == [made[:0:-1], made[:1]]
