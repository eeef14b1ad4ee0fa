"""Nothing that the server prints at log level debug contains a code, a destination or a secret."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from server.sandbox.providers import ProvidersSandbox, twilio_error
from tests.callers import reason_of
from tests.faults.process_deployment import CODE, KEY, ProcessDeployment, deployed_processes, start_sidecar
from tests.waiting import until

EMAIL, WHATSAPP, SMS, BLOCKED = "jane@mail.example", "+6281234567890", "+6281298765432", "+6281255555555"
SECRETS = ["meta-token", "twilio-token", "whsec_sandbox", "sk_test_sandbox", KEY]


@pytest.fixture
async def providers() -> AsyncIterator[tuple[ProvidersSandbox, str]]:
    """The stand-in for Twilio and WhatsApp, and its base URL."""
    sandbox = ProvidersSandbox()
    runner = web.AppRunner(sandbox.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield sandbox, f"http://127.0.0.1:{runner.addresses[0][1]}"
    sandbox.release()
    await runner.cleanup()


def provider_settings(url: str) -> dict[str, str]:
    return {
        "PULSA_CHANNEL_WHATSAPP": "whatsapp",
        "PULSA_WHATSAPP_PHONE_NUMBER_ID": "1234",
        "PULSA_WHATSAPP_ACCESS_TOKEN": "meta-token",
        "PULSA_WHATSAPP_TEMPLATE_NAME": "otp",
        "PULSA_WHATSAPP_BASE_URL": url,
        "PULSA_WHATSAPP_TIMEOUT_SECONDS": "3",
        "PULSA_DELIVERY_LEASE_SECONDS": "10",
        "PULSA_CHANNEL_SMS": "twilio",
        "PULSA_TWILIO_ACCOUNT_SID": "AC1234",
        "PULSA_TWILIO_AUTH_TOKEN": "twilio-token",
        "PULSA_TWILIO_SENDER": "+15550001111",
        "PULSA_TWILIO_BASE_URL": url,
        "PULSA_TWILIO_TIMEOUT_SECONDS": "3",
    }


async def test_the_log_of_a_whole_scenario_has_no_code_destination_or_secret(
    database_url: str, tmp_path: Path, providers: tuple[ProvidersSandbox, str]
) -> None:
    sandbox, url = providers
    async with deployed_processes(database_url, tmp_path, **provider_settings(url)) as deployment:
        await start_sidecar(deployment)
        codes = await run_scenario(deployment, sandbox)
        for command in ("serve", "webhook"):
            deployment.running[command].signal(signal.SIGTERM)
            assert await deployment.running[command].wait_for_exit() == 0
        log = deployment.running["serve"].output + deployment.running["webhook"].output
        token = deployment.token()

    assert len(codes) == 3
    assert log.count('"call"') >= 15
    # The log redacts values that look like secrets. No log call of the server may depend on that.
    assert "[hidden]" not in log
    private = [*codes, EMAIL, WHATSAPP, SMS, BLOCKED, "billing@example.com", *SECRETS, token.partition(".")[0]]
    assert [secret for secret in private if secret.removeprefix("+") in log] == []


async def run_scenario(deployment: ProcessDeployment, sandbox: ProvidersSandbox) -> set[str]:
    """A top-up, a send on each channel, a failed send, refusals, wrong and correct guesses. Returns the codes."""
    top_up = await deployment.order()
    async with (
        aiohttp.ClientSession() as browser,
        browser.post(f"{top_up.hosted_invoice_url}/pay") as page,
        browser.post(f"http://{deployment.settings['PULSA_WEBHOOK_LISTEN']}/stripe/webhook", data=EMAIL) as unsigned,
    ):
        assert (page.status, unsigned.status) == (200, 400)
    await until(lambda: has_credits(deployment))
    # Codes of 8 digits: six digits may be part of a time or an id by chance.
    sent = [
        await deployment.send(**to, code_length=8) for to in ({"email": EMAIL}, {"whatsapp": WHATSAPP}, {"sms": SMS})
    ]
    await until(lambda: deployment.code_mailed_to(EMAIL) and len(sandbox.received) == len(sent) - 1)
    texts = {received.provider: received.text for received in sandbox.received}
    codes = [deployment.code_mailed_to(EMAIL), texts["whatsapp"], CODE.findall(texts["twilio"])[0]]
    sandbox.play("twilio", twilio_error(21211, text=f"The number {BLOCKED} is not valid."))
    await deployment.send(sms=BLOCKED)
    await deployment.wait_for_empty_outbox()

    reasons = [
        await reason_of(deployment.send(email=EMAIL)),
        await reason_of(deployment.send(sms="+62")),
        await reason_of(deployment.send(email="not an address")),
        await reason_of(deployment.call("VerifyOtp", otp_id=sent[0].otp.otp_id, code="x")),
    ]
    assert reasons == ["RESEND_TOO_SOON", "INVALID_DESTINATION", "INVALID_DESTINATION", "WRONG_CODE"]
    for answer, code in zip(sent, codes, strict=True):
        await deployment.call("VerifyOtp", otp_id=answer.otp.otp_id, code=code)
    for rpc in ("ListOtps", "ListTopUps", "ListLedgerEntries", "VerifyLedger"):
        await deployment.call(rpc)
    return set(codes)


async def has_credits(deployment: ProcessDeployment) -> bool:
    return await deployment.balance() == 1000
