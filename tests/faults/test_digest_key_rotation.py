"""The digest key is rotated under load, replica by replica: no right code is wrong, no repeat is another request."""

import asyncio
import base64
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
from pulsa.errors import PulsaError

from tests.callers import reason_of
from tests.faults.load import under_load
from tests.faults.process_deployment import KEY, ProcessDeployment
from tests.faults.replicas import two_replicas
from tests.waiting import until

OLD, NEW = KEY, base64.b64encode(b"n" * 32).decode()
CONTEXT = "IDR 100"
LIMITED = "limited@mail.example"
GUESSED = "guessed@mail.example"
WRONG_GUESSES = 3


class Shoppers:
    """Two callers that order, repeat the order and verify its code with its context; a failure ends them."""

    def __init__(self, deployment: ProcessDeployment) -> None:
        self._site = deployment
        self.stopped = False
        self.verified = 0

    async def make_progress(self) -> None:
        """Return once several orders that began after this call were verified."""
        wanted = self.verified + 6
        await until(lambda: self.verified >= wanted)

    async def keep_ordering(self) -> None:
        while not self.stopped:
            address = f"x{uuid4().hex}@mail.example"  # no digits that could be a code
            order = {
                "request_id": str(uuid4()),
                "destination": {"email": address},
                "purpose": "pay",
                "context": CONTEXT,
            }
            sent = await self._call("SendOtp", **order)
            await until(lambda: self._site.code_mailed_to(address))  # noqa: B023 - awaited in the same iteration
            repeated = await self._call("SendOtp", **order)
            assert (repeated.replayed, repeated.otp.otp_id) == (True, sent.otp.otp_id)
            code = self._site.code_mailed_to(address)
            await self._call("VerifyOtp", request_id=str(uuid4()), otp_id=sent.otp.otp_id, code=code, context=CONTEXT)
            self.verified += 1

    async def _call(self, rpc: str, **fields: Any) -> Any:
        """The answer; while a replica restarts, the call is repeated with its request_id."""
        while True:
            try:
                return await self._site.call(rpc, **fields)
            except PulsaError as error:
                if error.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                await asyncio.sleep(0.05)


async def use_up_the_limits(deployment: ProcessDeployment) -> None:
    """Send to one address, so that its cooldown begins, and guess as often as is allowed at another one."""
    await deployment.send(email=LIMITED)
    otp_id = (await deployment.send(email=GUESSED)).otp.otp_id
    await until(lambda: deployment.code_mailed_to(GUESSED))
    wrong = "000000" if deployment.code_mailed_to(GUESSED) != "000000" else "000001"
    for _ in range(WRONG_GUESSES):
        assert await reason_of(deployment.call("VerifyOtp", otp_id=otp_id, code=wrong)) == "WRONG_CODE"


async def assert_limits_hold(deployment: ProcessDeployment, step: str) -> None:
    """Ask both replicas."""
    sent = await deployment.call("SendOtp", destination={"email": GUESSED}, purpose=step)
    for _ in range(4):
        assert await reason_of(deployment.send(email=LIMITED)) == "RESEND_TOO_SOON"
        assert (
            await reason_of(deployment.call("VerifyOtp", otp_id=sent.otp.otp_id, code="000000")) == "TOO_MANY_GUESSES"
        )


def let_two_days_pass(database_url: str) -> None:
    """For the sends under the old key, whose fingerprints begin with its id."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "UPDATE requests SET create_time = (create_time AT TIME ZONE 'UTC' - interval '2 days') AT TIME ZONE 'UTC'"
            " WHERE substring(fingerprint FROM 2 FOR 3) = 'old' AND rpc IN ('SendOtp', 'ResendOtp')"
        )


async def test_a_digest_key_is_rotated_under_load_and_nobody_notices(database_url: str, tmp_path: Path) -> None:
    limits = {"PULSA_LIMIT_COOLDOWN_SECONDS": "3600", "PULSA_LIMIT_WRONG_GUESSES": str(WRONG_GUESSES)}
    first = {"PULSA_SECRET_DIGEST_KEYS": f"old:{OLD}"}
    async with two_replicas(database_url, tmp_path, **limits, **first) as replicas:
        deployment, granted, reports = replicas.deployment, 1_000_000, []
        await deployment.grant(granted)
        await use_up_the_limits(deployment)
        other_sends = 2
        shoppers = Shoppers(deployment)
        async with under_load(deployment, callers=2, interval_seconds=0.1) as load, asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(shoppers.keep_ordering())
            await shoppers.make_progress()
            for step, ring in (("known", f"new:{NEW},old:{OLD}"), ("used", f"old:{OLD},new:{NEW}")):
                await replicas.roll(PULSA_SECRET_DIGEST_KEYS=ring)
                await shoppers.make_progress()
                await assert_limits_hold(deployment, step)
                other_sends += 1
            reports.append(await replicas.rotate())
            await asyncio.to_thread(let_two_days_pass, database_url)
            reports.append(await replicas.rotate())
            await replicas.roll(PULSA_SECRET_DIGEST_KEYS=f"new:{NEW}")
            await shoppers.make_progress()
            await load.wait_for_answers(5)
            shoppers.stopped = True
        await deployment.wait_for_empty_outbox()
        await load.assert_charged_once(granted, other_sends=other_sends + shoppers.verified)

    assert [code for code, _ in reports] == [1, 0]
    assert "digest key old: still needed until" in reports[0][1]
    assert "digest key old: no longer needed" in reports[1][1]
