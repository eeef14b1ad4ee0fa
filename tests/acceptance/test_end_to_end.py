"""The scenario of `make demo`, over gRPC and HTTP only."""

from pulsa.credit.v1.top_up_pb2 import TOP_UP_STATUS_PAID
from pulsa.otp.v1.otp_pb2 import OTP_STATUS_VERIFIED

from tests.acceptance.deployment import Deployment
from tests.callers import reason_of, refusal_of

SENDS = [
    ({"email": "jane@mail.example"}, 999),
    ({"whatsapp": "+6281234567890"}, 997),
    ({"sms": "+6281298765432"}, 994),
]


async def test_an_organization_buys_credits_sends_verifies_and_reads_its_history(pulsa: Deployment) -> None:
    balance = (await pulsa.call("GetBalance")).balance
    assert (balance.available_credits, balance.low_balance) == (0, True)
    refused = await refusal_of(pulsa.send(email="jane@mail.example"))
    assert (refused.reason, refused.metadata["required_credits"]) == ("INSUFFICIENT_CREDITS", "1")

    top_up = await pulsa.order()
    second = await refusal_of(pulsa.order())
    assert (second.reason, second.metadata["top_up_id"]) == ("TOP_UP_ALREADY_OPEN", top_up.top_up_id)
    await pulsa.pay(top_up)
    await pulsa.wait_for_balance(1000)
    assert not (await pulsa.call("GetBalance")).balance.low_balance

    sent = [await pulsa.send(**destination) for destination, _ in SENDS]
    assert [each.available_credits for each in sent] == [left for _, left in SENDS]
    await guess(pulsa, sent[0].otp.otp_id, await pulsa.code_sent_to("jane@mail.example"))
    await read_history(pulsa, top_up.top_up_id)


async def guess(pulsa: Deployment, otp_id: str, code: str) -> None:
    wrong = code[:-1] + str((int(code[-1]) + 1) % 10)
    counted = await refusal_of(pulsa.call("VerifyOtp", otp_id=otp_id, code=wrong))
    assert (counted.reason, counted.metadata["attempts_remaining"]) == ("WRONG_CODE", "4")
    right = await pulsa.call("VerifyOtp", otp_id=otp_id, code=code)
    assert right.otp.status == OTP_STATUS_VERIFIED
    assert await reason_of(pulsa.call("VerifyOtp", otp_id=otp_id, code=code)) == "OTP_ALREADY_VERIFIED"


async def read_history(pulsa: Deployment, top_up_id: str) -> None:
    [paid] = (await pulsa.call("ListTopUps")).top_ups
    assert (paid.top_up_id, paid.status) == (top_up_id, TOP_UP_STATUS_PAID)
    async with pulsa.browser.get(paid.invoice_pdf_url) as pdf:
        assert (await pdf.read()).startswith(b"%PDF")
    entries = (await pulsa.call("ListLedgerEntries")).ledger_entries
    assert [entry.credits for entry in entries] == [-3, -2, -1, 1000]
    assert [entry.balance_after for entry in entries] == [994, 997, 999, 1000]
    audit = await pulsa.call("VerifyLedger")
    assert (audit.holds, audit.entry_count, list(audit.findings)) == (True, 4, [])
