"""The example relay of the Python client: from a provider's callback or a bounce to the delivery, and suppressions."""

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientConnectorError
from pulsa.otp.v1.delivery_pb2 import DELIVERY_STATUS_FAILED, DELIVERY_STATUS_SENT
from pulsa.otp.v1.suppression_pb2 import SUPPRESSION_REASON_BOUNCE

from server.sandbox.relay import Relay
from tests.acceptance.deployment import Deployment, deployed
from tests.unit.test_provider_reports import notification, twilio
from tests.waiting import until

EXAMPLE = Path(__file__).parents[2] / "clients" / "python" / "examples" / "report_relay.py"


@asynccontextmanager
async def relaying(pulsa: Deployment, address: str, folder: Path) -> AsyncIterator[str]:
    """Run the example as its own process; yields its URL."""
    port = free_port()
    token = folder / "relay-token"
    token.write_text(pulsa.token(organization_id="*", permissions=["otp.report"]))
    own = {"PULSA": address, "TOKEN_FILE": str(token), "PUBLIC_URL": "https://hooks.example", "PORT": str(port)}
    secrets = {"TWILIO_AUTH_TOKEN": "token", "VONAGE_SIGNATURE_SECRET": "secret", "META_APP_SECRET": "app"}
    process = await asyncio.create_subprocess_exec(sys.executable, EXAMPLE, env=dict(os.environ) | own | secrets)
    url = f"http://127.0.0.1:{port}"

    async def listens() -> bool:
        try:
            async with pulsa.browser.post(f"{url}/mail") as answer:
                return answer.status == 204
        except ClientConnectorError:
            return False

    try:
        await until(listens)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def test_a_bounce_finds_its_delivery_refunds_it_and_suppresses_the_address_until_it_is_lifted(
    database_url: str, tmp_path: Path
) -> None:
    smtp: dict[str, object] = {"host": "127.0.0.1", "security": "none", "sender": "no-reply@pulsa.example"}
    limit, address = {"cooldown_seconds": 0}, f"127.0.0.1:{free_port()}"
    async with Relay() as mails:
        channel = {"email": "smtp", "sms": "console"}
        smtp |= {"port": mails.port, "bounce_address": "bounces@pulsa.example"}
        async with (
            deployed(
                database_url, tmp_path, smtp=smtp, channel=channel | {"console": True}, limit=limit, listen=address
            ) as pulsa,
            relaying(pulsa, address, tmp_path) as url,
        ):
            await pulsa.grant(10)
            sent = await pulsa.send(email="bob@mail.example")
            await until(lambda: mails.mails)
            mail = mails.mails[0]
            token = re.search(r"Pulsa-Delivery: ([a-z2-7]{39})\r\n", mail.content.decode())
            assert token
            assert mail.envelope[0] == f"MAIL FROM:<bounces+{token[1]}@pulsa.example>"
            assert "acme" not in mail.content.decode()

            bounce = notification("failed", "5.1.1", headers=f"Pulsa-Delivery: {token[1]}")
            async with pulsa.browser.post(f"{url}/mail", data=bounce) as answer:
                assert answer.status == 204

            assert await ended(pulsa, sent) == (DELIVERY_STATUS_FAILED, True, "smtp_5_1_1")
            assert await pulsa.balance() == 10
            (suppressed,) = (await pulsa.call("ListSuppressions")).suppressions
            assert (suppressed.masked_destination, suppressed.reason) == (
                "b***@mail.example",
                SUPPRESSION_REASON_BOUNCE,
            )

            again = await pulsa.send(email="Bob@mail.example")
            assert await ended(pulsa, again) == (DELIVERY_STATUS_FAILED, True, "suppressed")
            assert (await pulsa.balance(), len(mails.mails)) == (10, 1)
            assert not (await pulsa.call("ListSuppressions", "other")).suppressions

            bob = {"email": "bob@mail.example"}
            lifted = [(await pulsa.call("LiftSuppression", destination=bob)).lifted for _ in range(2)]
            assert lifted == [True, False]
            assert (await ended(pulsa, await pulsa.send(email="bob@mail.example")))[0] == DELIVERY_STATUS_SENT

            path = f"/twilio?reference=acme/{again.otp.deliveries[0].delivery_id.replace('-', '')}"
            form = {"MessageStatus": "delivered"}
            signatures = [twilio(form, url="https://hooks.example" + path), "forged"]
            statuses = []
            for signature in signatures:
                headers = {"X-Twilio-Signature": signature}
                async with pulsa.browser.post(url + path, data=form, headers=headers) as answer:
                    statuses.append(answer.status)
            assert statuses == [204, 403]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


async def ended(pulsa: Deployment, sent: object) -> tuple[int, bool, str]:
    """Status, refund and reason of the only delivery, once it has ended as it will."""
    otp_id = sent.otp.otp_id  # type: ignore[attr-defined]

    async def found() -> tuple[int, bool, str] | None:
        (delivery,) = (await pulsa.call("GetOtp", otp_id=otp_id)).otp.deliveries
        return None if delivery.status == 1 else (delivery.status, delivery.refunded, delivery.failure_reason)

    await until(found)
    result = await found()
    assert result
    return result
