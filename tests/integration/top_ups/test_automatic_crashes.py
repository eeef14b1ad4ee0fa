"""A process that crashes after any commit or Stripe call of an automatic top-up, and the process that replaces it.

tests/faults/test_automatic_top_up_killed.py does the same with real processes.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from server.credits.top_ups.state_machine import TopUpStatus
from tests.integration.top_ups.cards import add_card, bought, enable, settle, spend
from tests.integration.top_ups.driver import TopUpDriver
from tests.integration.top_ups.failpoints import crash_at_every_failpoint
from tests.waiting import until

_S = TopUpStatus
_AFTER_LEASE = timedelta(seconds=61)


async def _ready(driver: TopUpDriver, organization_id: str, behaviour: str = "works") -> None:
    """One credit above the threshold."""
    await driver.adjust(100, organization_id)
    await add_card(driver, organization_id, behaviour)
    await enable(driver, organization_id)
    await settle(driver)


async def _ready_in_vain(driver: TopUpDriver, organization_id: str) -> None:
    await _ready(driver, organization_id, "declined")


async def _cross(driver: TopUpDriver, organization_id: str) -> None:
    await driver.automatic.refresh(driver.clock())
    await spend(driver, 1, organization_id)
    await settle(driver)


async def _change_card(driver: TopUpDriver, organization_id: str) -> None:
    """Save a card in place of the first one, then remove it."""
    await add_card(driver, organization_id)
    await driver.automatic.remove_card(organization_id)
    await driver.automatic.detach_cards(limit=16)


async def _run_jobs_until(driver: TopUpDriver, holds: Callable[[], Awaitable[bool]]) -> None:
    driver.clock.ahead += _AFTER_LEASE

    async def once() -> bool:
        await driver.run_jobs()
        await settle(driver)
        driver.clock.ahead += timedelta(seconds=10)
        return await holds()

    await until(once)


async def _invoices(driver: TopUpDriver, organization_id: str) -> list[str]:
    invoices = await driver.invoices()
    return [each["status"] for each in invoices if each["metadata"]["organization_id"] == organization_id]


async def _check_bought(driver: TopUpDriver, organization_id: str) -> None:
    async def is_paid() -> bool:
        return [each.status for each in await bought(driver, organization_id)] == [_S.PAID]

    await _run_jobs_until(driver, is_paid)
    assert await _invoices(driver, organization_id) == ["paid"]
    assert await driver.credits(organization_id) == 1099
    assert (await driver.automatic.read(organization_id)).row.failed_charges == 0


async def test_a_crossing_that_crashes_anywhere_is_charged_and_credited_once(driver: TopUpDriver) -> None:
    points = await crash_at_every_failpoint(
        driver, _cross, before=_ready, after=lambda organization_id: _check_bought(driver, organization_id)
    )
    assert {"commit automatic order", "commit begin charge", "stripe pay", "commit apply invoice"} <= set(points)


async def test_a_charge_that_fails_and_crashes_anywhere_is_counted_and_told_once(driver: TopUpDriver) -> None:
    async def check_end(organization_id: str) -> None:
        async def is_counted() -> bool:
            return (await driver.automatic.read(organization_id)).row.failed_charges > 0

        await _run_jobs_until(driver, is_counted)
        await driver.run_jobs()
        assert (await driver.automatic.read(organization_id)).row.failed_charges == 1
        told = "SELECT count(*) FROM notices WHERE organization_id = %s AND kind = 'AUTOMATIC_TOP_UP_DECLINED'"
        assert await driver.query_value(told, organization_id) == 1
        [waiting] = await bought(driver, organization_id)
        await driver.invoice_action(waiting, "pay")
        await _check_bought(driver, organization_id)

    points = await crash_at_every_failpoint(driver, _cross, before=_ready_in_vain, after=check_end)
    assert "commit failed charge" in points


async def test_a_card_whose_change_crashes_anywhere_is_removed_for_good(driver: TopUpDriver) -> None:
    async def check_end(organization_id: str) -> None:
        async def are_detached() -> bool:
            return all(card["customer"] is None for card in (await driver.control("GET /cards"))["cards"])

        await driver.run_jobs()
        await driver.automatic.remove_card(organization_id)
        await _run_jobs_until(driver, are_detached)
        row = (await driver.automatic.read(organization_id)).row
        assert (row.payment_method_id, row.is_enabled, row.methods_to_detach) == (None, False, ())
        assert await _invoices(driver, organization_id) == []

    points = await crash_at_every_failpoint(driver, _change_card, before=_ready, after=check_end)
    assert {"commit card setup", "stripe create_card_setup", "stripe retrieve_card_setup", "commit card"} <= set(points)
    assert {"commit remove card", "stripe detach_card", "commit detach"} <= set(points)
