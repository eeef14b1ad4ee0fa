"""Nothing that the server prints, at its most talkative, holds a code, a destination or a secret."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from server.sandbox.providers import ProvidersSandbox, twilio_error
from tests.callers import reason_of
from tests.faults.site import CODE, KEY, Site, open_site, start_sidecar
from tests.waiting import until

EMAIL, WHATSAPP, SMS, BLOCKED = "jane@mail.example", "+6281234567890", "+6281298765432", "+6281255555555"
SECRETS = ["meta-token", "twilio-token", "whsec_sandbox", "sk_test_sandbox", KEY]


@pytest.fixture
async def providers() -> AsyncIterator[tuple[ProvidersSandbox, str]]:
    """Twilio and WhatsApp, and where they are."""
    sandbox = ProvidersSandbox()
    runner = web.AppRunner(sandbox.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield sandbox, f"http://127.0.0.1:{runner.addresses[0][1]}"
    sandbox.release()
    await runner.cleanup()


def channels(url: str) -> dict[str, str]:
    return {
        "PULSA_CHANNEL_WHATSAPP": "whatsapp",
        "PULSA_WHATSAPP_PHONE_NUMBER_ID": "1234",
        "PULSA_WHATSAPP_ACCESS_TOKEN": "meta-token",
        "PULSA_WHATSAPP_TEMPLATE_NAME": "otp",
        "PULSA_WHATSAPP_BASE_URL": url,
        "PULSA_WHATSAPP_TIMEOUT_SECONDS": "3",
        "PULSA_CHANNEL_SMS": "twilio",
        "PULSA_TWILIO_ACCOUNT_SID": "AC1234",
        "PULSA_TWILIO_AUTH_TOKEN": "twilio-token",
        "PULSA_TWILIO_SENDER": "+15550001111",
        "PULSA_TWILIO_BASE_URL": url,
        "PULSA_TWILIO_TIMEOUT_SECONDS": "3",
    }


async def test_a_whole_story_leaves_no_code_destination_or_secret_in_the_log(
    database_url: str, tmp_path: Path, providers: tuple[ProvidersSandbox, str]
) -> None:
    sandbox, url = providers
    async with open_site(database_url, tmp_path, **channels(url)) as site:
        await start_sidecar(site)
        codes = await play(site, sandbox)
        for command in ("serve", "webhook"):
            site.running[command].signal(signal.SIGTERM)
            assert await site.running[command].ended() == 0
        log = site.running["serve"].output + site.running["webhook"].output
        token = site.token()

    assert len(codes) == 3
    assert log.count('"call"') >= 15
    # The log hides what looks like a secret. Nothing that we log may need that.
    assert "[hidden]" not in log
    told = [*codes, EMAIL, WHATSAPP, SMS, BLOCKED, "billing@example.com", *SECRETS, token.partition(".")[0]]
    assert [secret for secret in told if secret.removeprefix("+") in log] == []


async def play(site: Site, sandbox: ProvidersSandbox) -> set[str]:
    """A top-up, a send by each channel and one that fails, refusals, wrong and right guesses. Gives the codes."""
    top_up = await site.order()
    async with (
        aiohttp.ClientSession() as browser,
        browser.post(f"{top_up.hosted_invoice_url}/pay") as page,
        browser.post(f"http://{site.settings['PULSA_WEBHOOK_LISTEN']}/stripe/webhook", data=EMAIL) as unsigned,
    ):
        assert (page.status, unsigned.status) == (200, 400)
    await until(lambda: has_credits(site))
    # Long codes, as six digits may be part of a time or an id by chance.
    sent = [await site.send(**to, code_length=8) for to in ({"email": EMAIL}, {"whatsapp": WHATSAPP}, {"sms": SMS})]
    await until(lambda: site.code_mailed_to(EMAIL) and len(sandbox.received) == len(sent) - 1)
    texts = {received.provider: received.text for received in sandbox.received}
    codes = [site.code_mailed_to(EMAIL), texts["whatsapp"], CODE.findall(texts["twilio"])[0]]
    sandbox.play("twilio", twilio_error(21211, text=f"The number {BLOCKED} is not valid."))
    await site.send(sms=BLOCKED)
    await site.is_settled()

    reasons = [
        await reason_of(site.send(email=EMAIL)),
        await reason_of(site.send(sms="+62")),
        await reason_of(site.send(email="not an address")),
        await reason_of(site.call("VerifyOtp", otp_id=sent[0].otp.otp_id, code="x")),
    ]
    assert reasons == ["RESEND_TOO_SOON", "INVALID_DESTINATION", "INVALID_DESTINATION", "WRONG_CODE"]
    for answer, code in zip(sent, codes, strict=True):
        await site.call("VerifyOtp", otp_id=answer.otp.otp_id, code=code)
    for rpc in ("ListOtps", "ListTopUps", "ListLedgerEntries", "VerifyLedger"):
        await site.call(rpc)
    return set(codes)


async def has_credits(site: Site) -> bool:
    return await site.balance() == 1000
