"""A process that crashes after any commit or Stripe call, and the process that replaces it."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

from server.credits.top_ups.state_machine import Resolution, TopUp, TopUpStatus
from server.errors import TopUpPartlyPaid
from tests.integration.top_ups.driver import TopUpDriver, tax_rate
from tests.integration.top_ups.failpoints import crash_at_every_failpoint, restart
from tests.waiting import until

_AFTER_LEASE = timedelta(seconds=61)
_TAXED = 16_650_000
"""1,000 credits with a tax of 11 %, in minor units."""


async def _run_jobs_until(driver: TopUpDriver, organization_id: str, status: TopUpStatus) -> TopUp:
    """The organization's only top-up, once the periodic jobs have brought it to this status."""
    driver.clock.ahead += _AFTER_LEASE

    async def has_status() -> bool:
        await driver.run_jobs()
        driver.clock.ahead += timedelta(seconds=10)
        return [each.status for each in await driver.top_ups.list(organization_id, limit=10)] == [status]

    await until(has_status)
    return (await driver.top_ups.list(organization_id, limit=10))[0]


async def _buy(driver: TopUpDriver, organization_id: str) -> None:
    await driver.buy(organization_id)


async def _cancel(driver: TopUpDriver, organization_id: str) -> None:
    [opened] = await driver.top_ups.list(organization_id, limit=10)
    await driver.cancel(opened)


async def _invoice_statuses(driver: TopUpDriver, organization_id: str) -> list[str]:
    invoices = await driver.invoices()
    return [each["status"] for each in invoices if each["metadata"]["organization_id"] == organization_id]


async def test_a_purchase_that_crashes_anywhere_ends_with_one_invoice_and_is_credited_once(driver: TopUpDriver) -> None:
    async def check_end(organization_id: str) -> None:
        if not await driver.top_ups.list(organization_id, limit=1):
            await driver.buy(organization_id)
        opened = await _run_jobs_until(driver, organization_id, TopUpStatus.OPEN)
        assert await _invoice_statuses(driver, organization_id) == ["open"]
        await driver.invoice_action(opened, "pay")
        await _run_jobs_until(driver, organization_id, TopUpStatus.PAID)
        assert await driver.credits(organization_id) == 1000
        assert (await driver.buy(organization_id)).status is TopUpStatus.OPEN

    points = await crash_at_every_failpoint(driver, _buy, after=check_end)
    calls = [point for point in points if point.startswith("stripe")]
    assert calls == ["stripe create_customer", "stripe create_invoice", "stripe create_item", "stripe finalize"]
    assert len(points) > 2 * len(calls)


async def test_a_cancellation_that_crashes_anywhere_ends_with_a_void_invoice(driver: TopUpDriver) -> None:
    async def check_end(organization_id: str) -> None:
        [found] = await driver.top_ups.list(organization_id, limit=10)
        if found.status is TopUpStatus.OPEN:
            await driver.cancel(found)
        await _run_jobs_until(driver, organization_id, TopUpStatus.CANCELED)
        assert await _invoice_statuses(driver, organization_id) == ["void"]
        assert await driver.credits(organization_id) == 0
        assert (await driver.buy(organization_id)).status is TopUpStatus.OPEN

    points = await crash_at_every_failpoint(driver, _cancel, before=_buy, after=check_end)
    assert [point for point in points if point.startswith("stripe")] == ["stripe retrieve", "stripe void"]


async def test_a_purchase_that_crashed_anywhere_can_be_canceled(driver: TopUpDriver) -> None:
    async def check_end(organization_id: str) -> None:
        if not await driver.top_ups.list(organization_id, limit=1):
            return
        driver.clock.ahead += _AFTER_LEASE
        [found] = await driver.top_ups.list(organization_id, limit=10)
        await driver.cancel(found)
        await _run_jobs_until(driver, organization_id, TopUpStatus.CANCELED)
        assert set(await _invoice_statuses(driver, organization_id)) <= {"void"}
        assert (await driver.buy(organization_id)).status is TopUpStatus.OPEN

    await crash_at_every_failpoint(driver, _buy, after=check_end)


async def test_an_event_whose_processing_crashes_anywhere_is_credited_once(driver: TopUpDriver) -> None:
    async def pay(driver: TopUpDriver, organization_id: str) -> None:
        opened = await driver.buy(organization_id)
        await driver.invoice_action(opened, "pay")

    async def process(driver: TopUpDriver, _organization_id: str) -> None:
        await driver.inbox.collect_undelivered(now=driver.clock())
        await driver.inbox.process_due(now=driver.clock(), limit=10)

    async def check_end(organization_id: str) -> None:
        await _run_jobs_until(driver, organization_id, TopUpStatus.PAID)
        assert await driver.credits(organization_id) == 1000
        assert await driver.event_statuses() == {"DONE"}

    points = await crash_at_every_failpoint(driver, process, before=pay, after=check_end)
    assert "commit apply invoice" in points


async def test_a_taxed_purchase_from_a_balance_that_crashes_anywhere_is_credited_once(driver: TopUpDriver) -> None:
    rate = await tax_rate(driver)
    driver.terms = replace(driver.terms, tax_rates={"IDR": rate})
    await restart(driver, driver.replica)

    async def overpay(driver: TopUpDriver, organization_id: str) -> None:
        opened = await driver.buy(organization_id)
        await driver.invoice_action(opened, "pay", amount=_TAXED + _TAXED)
        driver.clock.ahead = timedelta(seconds=10)
        await driver.run_jobs()

    async def check_end(organization_id: str) -> None:
        if len(await driver.top_ups.list(organization_id, limit=2)) < 2:
            await driver.buy(organization_id)
        driver.clock.ahead += _AFTER_LEASE

        async def are_paid() -> bool:
            await driver.run_jobs()
            driver.clock.ahead += timedelta(seconds=10)
            return {each.status for each in await driver.top_ups.list(organization_id, limit=10)} == {TopUpStatus.PAID}

        await until(are_paid)
        assert await _invoice_statuses(driver, organization_id) == ["paid", "paid"]
        assert await driver.credits(organization_id) == 2000

    points = await crash_at_every_failpoint(driver, _buy, before=overpay, after=check_end)
    calls = [point for point in points if point.startswith("stripe")]
    assert calls[:3] == ["stripe update_customer", "stripe list_balance_transactions", "stripe create_invoice"]
    assert calls[-2:] == ["stripe finalize", "stripe list_balance_transactions"]


async def test_the_cancellation_and_the_resolution_of_a_partly_paid_one_that_crash_anywhere_happen_once(
    driver: TopUpDriver,
) -> None:
    request_ids: dict[str, UUID] = {}

    async def pay_a_part(driver: TopUpDriver, organization_id: str) -> None:
        await driver.invoice_action(await driver.buy(organization_id), "pay", amount=_TAXED // 2)

    async def end(driver: TopUpDriver, organization_id: str) -> None:
        [found] = await driver.top_ups.list(organization_id, limit=10)
        if found.status is not TopUpStatus.RESOLVED:
            with suppress(TopUpPartlyPaid):
                await driver.cancel(found)
        request_id = request_ids.setdefault(organization_id, uuid4())
        await driver.top_ups.resolve(organization_id, found.top_up_id, Resolution(request_id, 400, "a part", "olga"))

    async def check_end(organization_id: str) -> None:
        driver.clock.ahead += _AFTER_LEASE
        await driver.run_jobs()
        await end(driver, organization_id)
        await _run_jobs_until(driver, organization_id, TopUpStatus.RESOLVED)
        assert await _invoice_statuses(driver, organization_id) == ["open"]
        assert await driver.credits(organization_id) == 400
        assert (await driver.buy(organization_id)).status is TopUpStatus.OPEN

    points = await crash_at_every_failpoint(driver, end, before=pay_a_part, after=check_end)
    assert "commit keep partly paid" in points
    assert points[-1] == "commit resolve"
