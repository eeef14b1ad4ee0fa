"""What a consent is about: its price, who gave it, and what it ends."""

from decimal import Decimal

from server.credits.top_ups.automatic import AutomaticTopUpState
from server.credits.top_ups.state_machine import TopUpStatus
from tests.integration.top_ups.cards import (
    CONSENT,
    bought,
    enable,
    is_off,
    notices,
    off_reason,
    ready,
    settle,
    spend,
    switch_off,
)
from tests.integration.top_ups.driver import ACME, TopUpDriver
from tests.waiting import until

_S = TopUpStatus


async def test_every_consent_is_kept_with_what_it_is_about(driver: TopUpDriver) -> None:
    await ready(driver)
    await enable(driver, credits=2000)
    await switch_off(driver)
    consent = "jsonb_build_array(consent_text, given_by, terms -> 'credits', terms -> 'total')"
    kept = await driver.query_value(f"SELECT jsonb_agg({consent} ORDER BY create_time) FROM consents")  # noqa: S608
    assert kept == [[CONSENT.text, "ann", 1000, "150000"], [CONSENT.text, "ann", 2000, "300000"]]


def priced(driver: TopUpDriver, unit_price: int) -> None:
    """Start a replica with this price of a credit, in rupiah."""
    prices = dict(driver.pricing.unit_prices) | {"IDR": Decimal(unit_price)}
    driver.pricing = driver.pricing.model_copy(update={"unit_prices": prices})
    driver.start()


async def test_what_costs_more_than_at_the_consent_is_not_bought_without_a_new_one(driver: TopUpDriver) -> None:
    await ready(driver)
    priced(driver, 151)
    await driver.automatic.refresh(driver.clock())
    await spend(driver, 1)
    await settle(driver)
    assert await bought(driver) == []
    assert await off_reason(driver) == "PRICE_RAISED"
    assert await notices(driver) == ["BALANCE_LOW", "AUTOMATIC_TOP_UP_OFF"]

    await enable(driver)
    await settle(driver)

    assert [(each.status, int(each.total)) for each in await bought(driver)] == [(_S.PAID, 151_000)]


async def test_what_costs_less_than_at_the_consent_is_bought(driver: TopUpDriver) -> None:
    await ready(driver)
    priced(driver, 149)
    await driver.automatic.refresh(driver.clock())
    await spend(driver, 1)
    await settle(driver)
    assert [(each.status, int(each.total)) for each in await bought(driver)] == [(_S.PAID, 149_000)]


async def test_an_order_that_waits_at_a_higher_price_than_the_new_consent_s_is_replaced(driver: TopUpDriver) -> None:
    await ready(driver, credits=99, behaviour="declined")
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/works")
    priced(driver, 149)
    await enable(driver)
    await settle(driver)
    await driver.run_jobs()
    await driver.run_jobs()
    await settle(driver)
    orders = [(each.status, int(each.total)) for each in await bought(driver)]
    assert orders == [(_S.PAID, 149_000), (_S.CANCELED, 150_000)]


async def test_switching_off_takes_note_of_the_reason_for_which_the_server_did(driver: TopUpDriver) -> None:
    await ready(driver)
    [card] = (await driver.control("GET /cards"))["cards"]
    await driver.control(f"POST /cards/{card['id']}/detach")
    await until(lambda: is_off(driver, "CARD_REMOVED"))
    assert (await driver.automatic.read(ACME)).state is AutomaticTopUpState.SWITCHED_OFF
    await switch_off(driver)
    assert (await driver.automatic.read(ACME)).state is AutomaticTopUpState.OFF
