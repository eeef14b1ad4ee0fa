"""Fault group 10: a process that stops for good at any point, each commit and each Stripe call, and its successor."""

from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta

from server.credits.top_up_rows import TopUp
from server.credits.top_up_states import TopUpStatus
from tests.integration.top_ups.shop import Shop, until
from tests.integration.top_ups.stopping import Stop, play, replace_process

_LEASE_IS_OVER = timedelta(seconds=61)


Scene = Callable[[Shop, str], Coroutine[None, None, None]]
"""What a process does for an organization when it is stopped; set up before by what comes with it."""


async def _crash(shop: Shop, organization_id: str, stop: Stop, scene: Scene) -> bool:
    """Play the scene in a process that stops; a new process takes its place. False when the scene came to its end."""
    desk = shop.start(reached=stop.reached)
    await play(scene(shop, organization_id), stop)
    await replace_process(shop, desk)
    return stop.stopped.is_set()


async def _watch_until(shop: Shop, organization_id: str, status: TopUpStatus) -> TopUp:
    """The organization's only top-up, once the watch has brought it to this state."""
    shop.clock.ahead += _LEASE_IS_OVER

    async def arrived() -> bool:
        await shop.watch()
        shop.clock.ahead += timedelta(seconds=10)
        return [each.status for each in await shop.top_ups.list(organization_id, limit=10)] == [status]

    await until(arrived)
    return (await shop.top_ups.list(organization_id, limit=10))[0]


async def _every_point(
    shop: Shop, scene: Scene, *, before: Scene | None = None, after: Callable[[str], Awaitable[None]]
) -> list[str]:
    """Crash at the first point of the scene, then, for another organization, at the second, and so on to its end."""
    # No webhook arrives: what the crash left is found by the watch alone.
    shop.sandbox.set_webhook_url("http://127.0.0.1:9/closed")
    points = 0
    while True:
        organization_id, stop = f"organization-{points}", Stop(passes=points)
        shop.clock.ahead = timedelta(0)
        if before:
            await before(shop, organization_id)
        stopped = await _crash(shop, organization_id, stop, scene)
        await after(organization_id)
        if not stopped:
            return stop.points
        points += 1


async def _buy(shop: Shop, organization_id: str) -> None:
    await shop.buy(organization_id)


async def _cancel(shop: Shop, organization_id: str) -> None:
    [opened] = await shop.top_ups.list(organization_id, limit=10)
    await shop.cancel(opened)


async def _invoice_statuses(shop: Shop, organization_id: str) -> list[str]:
    invoices = await shop.invoices()
    return [each["status"] for each in invoices if each["metadata"]["organization_id"] == organization_id]


async def test_a_purchase_that_is_stopped_anywhere_ends_with_one_invoice_and_one_credit(shop: Shop) -> None:
    async def ends_well(organization_id: str) -> None:
        if not await shop.top_ups.list(organization_id, limit=1):
            await shop.buy(organization_id)
        opened = await _watch_until(shop, organization_id, TopUpStatus.OPEN)
        assert await _invoice_statuses(shop, organization_id) == ["open"]
        await shop.act(opened, "pay")
        await _watch_until(shop, organization_id, TopUpStatus.PAID)
        assert await shop.credits(organization_id) == 1000
        assert (await shop.buy(organization_id)).status is TopUpStatus.OPEN

    points = await _every_point(shop, _buy, after=ends_well)
    calls = [point for point in points if point.startswith("stripe")]
    assert calls == ["stripe create_customer", "stripe create_invoice", "stripe create_item", "stripe finalize"]
    assert len(points) > 2 * len(calls)


async def test_a_cancellation_that_is_stopped_anywhere_ends_void(shop: Shop) -> None:
    async def ends_well(organization_id: str) -> None:
        [found] = await shop.top_ups.list(organization_id, limit=10)
        if found.status is TopUpStatus.OPEN:
            await shop.cancel(found)
        await _watch_until(shop, organization_id, TopUpStatus.CANCELED)
        assert await _invoice_statuses(shop, organization_id) == ["void"]
        assert await shop.credits(organization_id) == 0
        assert (await shop.buy(organization_id)).status is TopUpStatus.OPEN

    points = await _every_point(shop, _cancel, before=_buy, after=ends_well)
    assert [point for point in points if point.startswith("stripe")] == ["stripe retrieve", "stripe void"]


async def test_a_purchase_stopped_anywhere_can_be_canceled(shop: Shop) -> None:
    async def ends_well(organization_id: str) -> None:
        if not await shop.top_ups.list(organization_id, limit=1):
            return
        shop.clock.ahead += _LEASE_IS_OVER
        [found] = await shop.top_ups.list(organization_id, limit=10)
        await shop.cancel(found)
        await _watch_until(shop, organization_id, TopUpStatus.CANCELED)
        assert set(await _invoice_statuses(shop, organization_id)) <= {"void"}
        assert (await shop.buy(organization_id)).status is TopUpStatus.OPEN

    await _every_point(shop, _buy, after=ends_well)


async def test_an_event_whose_processing_is_stopped_anywhere_is_one_credit(shop: Shop) -> None:
    async def pay(shop: Shop, organization_id: str) -> None:
        opened = await shop.buy(organization_id)
        await shop.act(opened, "pay")

    async def process(shop: Shop, _organization_id: str) -> None:
        await shop.inbox.collect_undelivered(now=shop.clock())
        await shop.inbox.process_due(now=shop.clock(), limit=10)

    async def ends_well(organization_id: str) -> None:
        await _watch_until(shop, organization_id, TopUpStatus.PAID)
        assert await shop.credits(organization_id) == 1000
        assert await shop.event_statuses() == {"DONE"}

    points = await _every_point(shop, process, before=pay, after=ends_well)
    assert "commit settle" in points
