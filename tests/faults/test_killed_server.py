"""Kill -9 of the server: no accepted send is lost, none is charged twice."""

from collections import Counter

from pulsa.otp.v1.delivery_pb2 import DELIVERY_STATUS_SENT

from server.sandbox.relay import HANG
from tests.faults.load import under_load
from tests.faults.site import Site
from tests.waiting import until


async def test_a_send_answered_just_before_goes_out_once_more_and_is_charged_once(site: Site) -> None:
    await site.grant(100)
    # The worst moment: the relay has the whole mail, and its answer is still to come.
    site.relay.play("CONTENT", HANG)
    sent = await site.send(email="jane@mail.example")
    await site.relay.reached("CONTENT")
    await site.kill("serve")
    await site.start("serve")

    async def is_sent() -> bool:
        otp = (await site.call("GetOtp", otp_id=sent.otp.otp_id)).otp
        return bool(otp.deliveries[0].status == DELIVERY_STATUS_SENT)

    await until(is_sent)
    await site.is_settled()

    assert (site.relay.connections, site.mails()) == (2, {"jane@mail.example": 1})
    assert await site.balance() == 99
    await site.call("VerifyOtp", otp_id=sent.otp.otp_id, code=site.code_mailed_to("jane@mail.example"))
    assert "every ledger holds" in await site.audit()


async def test_under_load_every_accepted_send_stays_and_is_charged_once(site: Site) -> None:
    await site.grant(100_000)

    async with under_load(site) as load:
        for _ in range(2):
            await load.has_answers(50)
            await site.kill("serve")
            await site.start("serve")
        await load.has_answers(50)
    await load.is_charged_once(100_000)
    await site.is_settled()

    mails = site.mails()
    assert load.repeats > 0
    assert mails.keys() == {f"{request_id}@mail.example" for request_id in load.answers}
    assert Counter(mails.values()).keys() <= {1, 2}
