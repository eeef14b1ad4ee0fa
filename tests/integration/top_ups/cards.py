"""What an organization does for automatic top-ups: it saves a card on Stripe's page, agrees, and spends."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from server.credits.top_ups.automatic import SETTINGS, AutomaticTopUp, Consent, next_month
from server.credits.top_ups.automatic_service import AutomaticTopUpView
from server.credits.top_ups.cards import CardSetupOrder, save_card
from server.credits.top_ups.state_machine import TopUp
from server.ids import new_id
from tests.integration.top_ups.driver import ACME, TopUpDriver

CONSENT = Consent("Charge our card.", given_by="ann")
CHOSEN = AutomaticTopUp(
    "",
    datetime.min.replace(tzinfo=UTC),
    is_enabled=True,
    threshold_credits=100,
    credits=1000,
    currency_code="IDR",
    monthly_credit_cap=100_000,
    billing_email="billing@example.com",
)


async def add_card(
    driver: TopUpDriver, organization_id: str = ACME, behaviour: str = "works", request_id: UUID | None = None
) -> None:
    """Save a card on Stripe's page; it is known here when this returns, without a webhook."""
    session_id = await open_page(driver, organization_id, behaviour, request_id)
    await save_card(driver.replica.store, driver.replica.stripe_client, session_id)


async def open_page(
    driver: TopUpDriver, organization_id: str = ACME, behaviour: str = "works", request_id: UUID | None = None
) -> str:
    """Save a card on Stripe's page; returns the id of its session."""
    order = CardSetupOrder(organization_id, request_id or new_id(), "billing@example.com", "", "https://example.com/")
    setup = await driver.automatic.start_card_setup(order)
    async with driver.session.post(f"{setup.url}/{behaviour}", allow_redirects=False) as response:
        assert response.status in {200, 303}  # 200: it was saved before
    return setup.session_id


async def enable(driver: TopUpDriver, organization_id: str = ACME, **changes: Any) -> AutomaticTopUpView:
    """Choose these settings, with consent; returns without waiting for an order that this causes."""
    return await driver.automatic.update(organization_id, replace(CHOSEN, **changes), SETTINGS, CONSENT)


async def switch_off(driver: TopUpDriver, organization_id: str = ACME) -> None:
    await driver.automatic.update(
        organization_id, replace(CHOSEN, is_enabled=False), {"is_enabled"}, Consent("", given_by="ann")
    )


async def spend(driver: TopUpDriver, credits: int, organization_id: str = ACME) -> None:
    """Take credits, and tell of it as a send does after its commit."""
    left = await driver.adjust(-credits, organization_id)
    driver.automatic.note_spending(organization_id, credits=credits, balance_after=left)


async def settle(driver: TopUpDriver) -> None:
    """Return once everything that runs in the background has ended."""
    await driver.automatic.close()
    await driver.top_ups.close()


def to_day_of_next_month(driver: TopUpDriver, day: int) -> None:
    """Put the clock to a day of the next month."""
    driver.clock.ahead += next_month(driver.clock()) - driver.clock() + timedelta(days=day - 1)


async def bought(driver: TopUpDriver, organization_id: str = ACME) -> list[TopUp]:
    """The automatic top-ups, newest first."""
    return [each for each in await driver.top_ups.list(organization_id, limit=100) if each.is_automatic]


async def ready(driver: TopUpDriver, *, credits: int = 100, behaviour: str = "works", **changes: Any) -> None:
    """An organization with credits, a card, and automatic top-ups below 100."""
    await driver.adjust(credits)
    await add_card(driver, behaviour=behaviour)
    await enable(driver, **changes)
    await settle(driver)


async def notices(driver: TopUpDriver) -> list[str]:
    query = "SELECT string_agg(kind, ' ' ORDER BY create_time, kind) FROM notices"
    return str(await driver.query_value(query) or "").split()


async def off_reason(driver: TopUpDriver) -> str:
    row = (await driver.automatic.read(ACME)).row
    return row.off_reason if not row.is_enabled else "it is on"


async def is_off(driver: TopUpDriver, reason: str) -> bool:
    return await off_reason(driver) == reason


async def charges(driver: TopUpDriver) -> int:
    return int((await driver.control("GET /requests?path=*/pay"))["count"])
