"""Kill -9 of the server: no accepted send is lost, and none is charged twice."""

from collections import Counter

from pulsa.otp.v1.delivery_pb2 import DELIVERY_STATUS_SENT

from server.sandbox.relay import HANG
from tests.faults.load import under_load
from tests.faults.process_deployment import ProcessDeployment
from tests.waiting import until


async def test_a_send_answered_just_before_the_kill_is_sent_again_and_charged_once(
    deployment: ProcessDeployment,
) -> None:
    await deployment.grant(100)
    # The worst moment: the relay has the whole mail, but has not answered yet.
    deployment.relay.play("CONTENT", HANG)
    sent = await deployment.send(email="jane@mail.example")
    await deployment.relay.reached("CONTENT")
    await deployment.kill("serve")
    await deployment.start("serve")

    async def is_sent() -> bool:
        otp = (await deployment.call("GetOtp", otp_id=sent.otp.otp_id)).otp
        return bool(otp.deliveries[0].status == DELIVERY_STATUS_SENT)

    await until(is_sent)
    await deployment.wait_for_empty_outbox()

    assert (deployment.relay.connections, deployment.mails()) == (2, {"jane@mail.example": 1})
    assert await deployment.balance() == 99
    await deployment.call("VerifyOtp", otp_id=sent.otp.otp_id, code=deployment.code_mailed_to("jane@mail.example"))
    assert "every ledger holds" in await deployment.audit()


async def test_under_load_every_accepted_send_is_kept_and_charged_once(deployment: ProcessDeployment) -> None:
    await deployment.grant(100_000)

    async with under_load(deployment) as load:
        for _ in range(2):
            await load.wait_for_answers(50)
            await deployment.kill("serve")
            await deployment.start("serve")
        await load.wait_for_answers(50)
    await load.assert_charged_once(100_000)
    await deployment.wait_for_empty_outbox()

    mails = deployment.mails()
    assert load.repeats > 0
    assert mails.keys() == {f"{request_id}@mail.example" for request_id in load.answers}
    assert Counter(mails.values()).keys() <= {1, 2}
