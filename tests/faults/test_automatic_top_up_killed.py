"""Kill -9 at each step of an automatic top-up, of a charge that fails, and of a card that is saved and removed.

KILL_AT=all, as in `make test-faults`, kills at every failpoint, each time that it is reached. Without it only a
purchase is killed, at two steps of its own; tests/integration/top_ups/test_automatic_crashes.py crashes at every one
within one process.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpState as State

from tests.acceptance.deployment import Deployment
from tests.acceptance.test_top_ups_by_card import automatic, enable, save_card, spend, top_ups
from tests.databases import Databases
from tests.faults.test_killed_at_every_failpoint import CrashScenario
from tests.waiting import until

EVERYWHERE = os.environ.get("KILL_AT") == "all"
only_everywhere = pytest.mark.skipif(not EVERYWHERE, reason="takes minutes: make test-faults")


async def ready(pulsa: Deployment, behaviour: str = "works") -> None:
    await pulsa.grant(100)
    await save_card(pulsa, behaviour)
    await enable(pulsa)


async def cross(pulsa: Deployment) -> None:
    await spend(pulsa)
    await pulsa.wait_for_balance(1099)


async def cross_in_vain(pulsa: Deployment) -> None:
    await spend(pulsa)

    async def is_declined() -> bool:
        return (await automatic(pulsa)).state == State.AUTOMATIC_TOP_UP_STATE_DECLINED

    await until(is_declined)


async def change_card(pulsa: Deployment) -> None:
    """Save a card in place of the first one, then remove it."""
    await save_card(pulsa)
    await pulsa.call("RemoveCard")

    async def is_detached() -> bool:
        await pulsa.balance()
        cards = (await pulsa.control("GET", "cards"))["cards"]
        return len(cards) > 1 and all(card["customer"] is None for card in cards)

    await until(is_detached)


async def invoices(pulsa: Deployment) -> list[Any]:
    return [each["status"] for each in (await pulsa.control("GET", "invoices"))["invoices"]]


async def test_an_automatic_top_up_killed_at_any_step_charges_and_credits_once(
    databases: Databases, tmp_path: Path
) -> None:
    async def bought(pulsa: Deployment) -> None:
        assert await invoices(pulsa) == ["paid"]
        assert [each.automatic for each in await top_ups(pulsa)] == [True]
        audit = await pulsa.call("VerifyLedger")
        assert (audit.holds, audit.entry_count) == (True, 3)
        assert (await automatic(pulsa)).state == State.AUTOMATIC_TOP_UP_STATE_READY

    scenario = CrashScenario(databases, tmp_path, cross, before=ready, after=bought)

    own = ["commit automatic order", "stripe pay"]

    reached = await scenario.kill_at_every_failpoint(None if EVERYWHERE else own)

    assert {"commit automatic order", "commit begin charge", "stripe pay", "commit apply invoice"} <= set(reached)


@only_everywhere
async def test_a_charge_that_fails_killed_at_any_step_is_counted_and_told_once(
    databases: Databases, tmp_path: Path
) -> None:
    async def declined(pulsa: Deployment) -> None:
        assert await invoices(pulsa) == ["open"]
        assert (await automatic(pulsa)).failed_charges == 1
        assert len({each.top_up_id for each in await top_ups(pulsa)}) == 1
        [waiting] = await top_ups(pulsa)
        await pulsa.pay(waiting)
        await pulsa.wait_for_balance(1099)

    before = partial(ready, behaviour="declined")
    scenario = CrashScenario(databases, tmp_path, cross_in_vain, before=before, after=declined)

    assert "commit failed charge" in await scenario.kill_at_every_failpoint()


@only_everywhere
async def test_a_card_killed_at_any_step_is_saved_once_and_removed_for_good(
    databases: Databases, tmp_path: Path
) -> None:
    async def removed(pulsa: Deployment) -> None:
        found = await automatic(pulsa)
        assert (found.HasField("card"), found.state) == (False, State.AUTOMATIC_TOP_UP_STATE_OFF)
        assert await invoices(pulsa) == []

    scenario = CrashScenario(databases, tmp_path, change_card, before=ready, after=removed)

    reached = await scenario.kill_at_every_failpoint()

    assert {"commit card setup", "stripe create_card_setup", "commit card", "commit detach"} <= set(reached)
