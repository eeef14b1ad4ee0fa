"""State that survives a restart of the stand-in, and errors of the control API."""

from pathlib import Path
from typing import Any

import pytest
import stripe

from server.sandbox.stripe import start_stripe_sandbox
from tests.integration.sandbox.stripe_harness import API_KEY, SECRET, Receiver, StripeHarness

KEY: stripe.RequestOptions = {"idempotency_key": "top-up:1:customer"}


async def test_all_objects_and_keys_survive_a_restart_with_a_state_file(
    harness: StripeHarness, receiver: Receiver, tmp_path: Path
) -> None:
    state_file = tmp_path / "stripe.json"
    settings: dict[str, Any] = {"api_key": API_KEY, "webhook_secret": SECRET, "state_file": state_file}
    first = await start_stripe_sandbox(**settings, webhook_url="http://127.0.0.1:1/unreachable")
    before = StripeHarness(first, receiver, harness.session)
    customer = await before.client().v1.customers.create_async({}, KEY)
    invoice = await before.open(customer=customer.id)
    await first.close()

    second = await start_stripe_sandbox(**settings, webhook_url=receiver.url)
    after = StripeHarness(second, receiver, harness.session)
    try:
        await receiver.wait_for("invoice.finalized")
        found = await after.fetch(invoice)
        assert (found.status, found.number) == ("open", invoice.number)
        assert (await after.client().v1.customers.create_async({}, KEY)).id == customer.id
        assert str(found.hosted_invoice_url).startswith(second.url)
        async with harness.session.post(f"{found.hosted_invoice_url}/pay") as response:
            assert "Paid" in await response.text()
        assert (await after.open(customer=customer.id)).id != invoice.id
    finally:
        await second.close()


async def test_the_same_seed_and_calls_give_the_same_ids() -> None:
    ids = []
    for seed in ("one", "one", "two"):
        sandbox = await start_stripe_sandbox(seed=seed)
        ids.append(sandbox.account.new_id("in_"))
        await sandbox.close()

    assert ids[0] == ids[1] != ids[2]


async def test_a_reset_removes_everything_and_never_reuses_an_id(harness: StripeHarness) -> None:
    before = await harness.open()
    await harness.receiver.wait_for("invoice.finalized")
    await harness.fault({"path": "*"}, "rate_limit", times=0)

    await harness.control("POST /reset")

    assert (await harness.control("GET /invoices"))["count"] == 0
    assert (await harness.control("GET /requests"))["count"] == 0
    assert (await harness.open()).id != before.id
    await harness.receiver.wait_for("invoice.finalized", "invoice.finalized")


async def test_the_log_counts_calls_by_method_and_path(harness: StripeHarness) -> None:
    invoice = await harness.open()

    assert await harness.calls("POST", "/v1/invoices") == 1
    assert await harness.calls("POST", "/v1/invoices/*") == 1
    found = await harness.control(f"GET /requests?path=/v1/invoices/{invoice.id}/finalize")
    assert [(each["status"], each["parameters"]) for each in found["requests"]] == [(200, {"auto_advance": "false"})]
    await harness.control("DELETE /requests")
    assert await harness.calls("POST", "/v1/invoices") == 0


async def test_all_invoices_are_listed_with_their_payments(harness: StripeHarness) -> None:
    invoice = await harness.open()
    await harness.act(invoice, "pay")

    listed = await harness.control("GET /invoices")

    assert listed["count"] == 1
    assert listed["invoices"][0]["metadata"] == {"top_up_id": "top-up-1"}
    assert listed["invoices"][0]["payments"]["data"][0]["status"] == "paid"


MISTAKES: list[tuple[str, Any, int]] = [
    ("POST /faults", {"match": {"path": "/v1/*"}, "fault": "explode"}, 400),
    ("POST /faults", {"match": {}, "fault": "rate_limit"}, 400),
    ("POST /faults", {"match": {"url": "/v1"}, "fault": "rate_limit"}, 400),
    ("POST /faults", {"match": {"event": "invoice.paid"}, "fault": "rate_limit"}, 400),
    ("POST /faults", {"match": {"path": "/v1/*"}, "fault": "rate_limit", "seconds": 1}, 400),
    ("POST /faults", {"match": {"path": "/v1/*"}, "fault": "act_before", "action": "explode"}, 400),
    ("POST /faults", [], 400),
    ("DELETE /faults/fault_99", None, 404),
    ("POST /invoices/in_unknown/pay", {}, 404),
    ("POST /events/evt_unknown/deliver", {}, 404),
    ("PATCH /settings", {"colour": "blue"}, 400),
    ("POST /clock", {}, 400),
]


@pytest.mark.parametrize(("call", "body", "status"), MISTAKES)
async def test_an_invalid_control_call_is_refused_with_its_error(
    harness: StripeHarness, call: str, body: Any, status: int
) -> None:
    method, path = call.split(" ")

    async with harness.session.request(method, f"{harness.sandbox.url}/_control{path}", json=body) as response:
        assert response.status == status
        assert (await response.json())["error"]


async def test_an_action_that_the_invoices_state_forbids_is_a_conflict(harness: StripeHarness) -> None:
    draft = await harness.draft()

    for action, status in (("pay", 409), ("explode", 400)):
        async with harness.session.post(f"{harness.sandbox.url}/_control/invoices/{draft.id}/{action}") as response:
            assert response.status == status
