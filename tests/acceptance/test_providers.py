"""docs/providers.md through the whole server: what a provider says of one organization's message touches no other's."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp.test_utils import TestServer
from pulsa.otp.v1.delivery_pb2 import (
    DELIVERY_STATUS_FAILED,
    DELIVERY_STATUS_QUEUED,
    DELIVERY_STATUS_SENT,
    DELIVERY_STATUS_UNKNOWN,
    DeliveryStatus,
)

from server.cli.reference import provider_verdicts
from server.providers.provider import OutcomeKind, Subject
from server.providers.smtp import Step, verdict_of_reply
from server.sandbox.providers import Answer, ProvidersSandbox, twilio_error, vonage_status, whatsapp_error
from server.sandbox.relay import Relay
from tests.acceptance.deployment import Deployment, deployed
from tests.waiting import until

CONCERNS_ALL: Final = {Subject.ACCOUNT, Subject.PROVIDER}
MAIL_REPLIES: Final = (
    *("421", "450", "451 4.7.1", "452 4.2.2", "501", "530 5.7.0", "535", "550", "550 5.1.1", "550 5.1.8", "550 5.7.1"),
    *("552 5.2.2", "552 5.3.4", "554", "554 5.7.26"),
)
MAIL_STEPS: Final = {"RCPT": Step.RECIPIENT, "DATA": Step.DATA, "CONTENT": Step.CONTENT}
PROXY: Final = "<html>refused</html>"
NO_ROUTE: Final = twilio_error(21612)
DESTINATIONS: Final = {
    "twilio": {"sms": "+12025550140"},
    "vonage": {"sms": "+12025550140"},
    "whatsapp": {"whatsapp": "+12025550140"},
    "smtp": {"email": "a@mail.example"},
}


def codes(provider: str, *, kind: OutcomeKind, concern_all: bool = False) -> list[str]:
    """The documented codes of a provider with an outcome of this kind, which are about one message, or about all.

    Of WhatsApp's 200 to 299 only the first.
    """
    return [
        code
        for name, code, verdict in provider_verdicts()
        if (name, verdict.kind, verdict.about in CONCERNS_ALL) == (provider, kind, concern_all)
        if code.isdecimal() and not 200 < int(code) < 300
    ]


class TwoOrganizations:
    """A's message gets each of the answers; then B's is sent at once, and costs what its channel costs."""

    def __init__(self, pulsa: Deployment, sandbox: ProvidersSandbox, relay: Relay) -> None:
        self.pulsa, self.sandbox, self.relay = pulsa, sandbox, relay

    async def deliver(self, organization_id: str, provider: str, **fields: Any) -> Any:
        """Send, and return the only delivery once its provider has answered."""
        sent = await self.pulsa.send(organization_id, **DESTINATIONS[provider], **fields)

        async def answered() -> Any:
            otp = (await self.pulsa.call("GetOtp", organization_id, otp_id=sent.otp.otp_id)).otp
            return otp.deliveries if otp.deliveries[0].status != DELIVERY_STATUS_QUEUED else None

        await until(answered)
        (delivery,) = await answered()
        return delivery

    async def expect(
        self, provider: str, status: "DeliveryStatus.ValueType", reasons: Sequence[str], *, by: str = ""
    ) -> None:
        """A's messages end so, and B's next one is sent by the provider, or by `by`, at the first try."""
        ended = await asyncio.gather(*(self.deliver("a", provider) for _ in reasons))
        assert {(one.status, one.refunded) for one in ended} == {(status, status == DELIVERY_STATUS_FAILED)}
        assert sorted(one.failure_reason for one in ended) == sorted(reasons)
        await self.expect_sent("b", by or provider)

    async def expect_sent(self, organization_id: str, provider: str) -> None:
        before = self.asked(provider)
        delivery = await self.deliver(organization_id, provider)
        assert (delivery.status, delivery.failure_reason) == (DELIVERY_STATUS_SENT, "")
        assert self.asked(provider) == before + 1

    def asked(self, provider: str) -> int:
        if provider == "smtp":
            return len(self.relay.mails)
        return sum(call.provider == provider for call in self.sandbox.received)


@pytest.fixture
async def both(database_url: str, tmp_path: Path) -> AsyncIterator[TwoOrganizations]:
    """The server with every provider; one outcome that counts for a breaker opens it for the rest of the test."""
    async with two_organizations(database_url, tmp_path, failures_to_open=1) as pair:
        yield pair


@pytest.fixture
async def patient(database_url: str, tmp_path: Path) -> AsyncIterator[TwoOrganizations]:
    """The server with every provider; its breakers stay closed."""
    async with two_organizations(database_url, tmp_path, failures_to_open=1000) as pair:
        yield pair


@asynccontextmanager
async def two_organizations(
    database_url: str, tmp_path: Path, *, failures_to_open: int
) -> AsyncIterator[TwoOrganizations]:
    sandbox = ProvidersSandbox()
    unlimited = ("cooldown_seconds", "sends_per_destination_per_hour", "sends_per_destination_per_day")
    async with TestServer(sandbox.application()) as stand_ins, Relay() as relay:
        url = str(stand_ins.make_url(""))
        changes: dict[str, Any] = {
            "limit": dict.fromkeys(unlimited, 0),
            "channel": {"email": "smtp", "whatsapp": "whatsapp", "sms": "twilio,vonage"}
            | {"failures_to_open": failures_to_open, "cooldown_seconds": 3600},
            "smtp": {"host": "127.0.0.1", "port": relay.port, "security": "none", "sender": "no-reply@pulsa.example"},
            "twilio": {"account_sid": "AC1", "auth_token": "token", "sender": "MG1", "base_url": url},
            "vonage": {"api_key": "key", "api_secret": "secret", "sender": "Pulsa", "base_url": url},
            "whatsapp": {"phone_number_id": "1", "access_token": "token", "template_name": "otp", "base_url": url},
        }
        async with deployed(database_url, tmp_path, **changes) as pulsa:
            for organization_id in ("a", "b"):
                await pulsa.grant(10_000, organization_id)
            yield TwoOrganizations(pulsa, sandbox, relay)


async def test_refusals_of_one_destination_or_route_touch_nobody_elses_messages(both: TwoOrganizations) -> None:
    sandbox = both.sandbox
    destination, route = OutcomeKind.REJECTED_DESTINATION, OutcomeKind.REJECTED_CONFIGURATION

    refused = codes("twilio", kind=destination)
    sandbox.play("twilio", *(twilio_error(int(code)) for code in refused))
    await both.expect("twilio", DELIVERY_STATUS_FAILED, [f"twilio_{code}" for code in refused])
    assert both.asked("vonage") == 0

    other_route = codes("twilio", kind=route)
    sandbox.play("twilio", *(twilio_error(int(code)) for code in other_route), Answer(400, PROXY), twilio_error(29999))
    for _ in range(len(other_route) + 2):
        await both.expect_sent("a", "vonage")
    await both.expect_sent("b", "twilio")

    refused = codes("vonage", kind=destination)
    sandbox.play("twilio", *[NO_ROUTE] * len(refused))
    sandbox.play("vonage", *(vonage_status(code) for code in refused))
    ended = await asyncio.gather(*(both.deliver("a", "vonage") for _ in refused))
    assert sorted(one.failure_reason for one in ended) == sorted(f"vonage_{code}" for code in refused)
    sandbox.play("twilio", NO_ROUTE)
    await both.expect_sent("b", "vonage")

    other_route = [*codes("vonage", kind=route), "999"]
    sandbox.play("twilio", *[NO_ROUTE] * len(other_route))
    sandbox.play("vonage", *(vonage_status(code) for code in other_route))
    await both.expect("twilio", DELIVERY_STATUS_FAILED, ["twilio_21612"] * len(other_route))

    refused = codes("whatsapp", kind=destination) + codes("whatsapp", kind=route)
    assert {"470", "130472", "131047", "131051", "100"} <= set(refused)
    sandbox.play("whatsapp", *(whatsapp_error(int(code)) for code in refused), whatsapp_error(999999))
    await both.expect("whatsapp", DELIVERY_STATUS_FAILED, [f"whatsapp_{code}" for code in (*refused, "999999")])


async def test_replies_about_a_mailbox_or_a_session_touch_nobody_elses_mail(both: TwoOrganizations) -> None:
    final: dict[str, list[str]] = {step: [] for step in MAIL_STEPS}
    transient: dict[str, list[str]] = {step: [] for step in MAIL_STEPS}
    for step, reply in product(MAIL_STEPS, MAIL_REPLIES):
        code, _, text = reply.partition(" ")
        verdict = verdict_of_reply(MAIL_STEPS[step], int(code), text)
        assert verdict.about not in CONCERNS_ALL, (step, reply)
        (transient if verdict.kind is OutcomeKind.NOT_SENT else final)[step].append(f"{reply} x")
    for step, replies in final.items():
        both.relay.play(step, *replies)
        await both.expect("smtp", DELIVERY_STATUS_FAILED, [f"smtp_{reply[:3]}" for reply in replies])
    # Only now, as their retries would get the replies that are meant for other mails.
    for step, replies in transient.items():
        both.relay.play(step, *replies)
        await asyncio.gather(*(both.pulsa.send("a", **DESTINATIONS["smtp"]) for _ in replies))
        await until(partial(both.relay.has_played, step))
    assert (await both.deliver("b", "smtp")).status == DELIVERY_STATUS_SENT


async def test_answers_about_the_account_or_the_provider_end_as_documented(patient: TwoOrganizations) -> None:
    sandbox, expect = patient.sandbox, patient.expect
    refused = {
        name: codes(name, kind=OutcomeKind.REJECTED_CONFIGURATION, concern_all=True) for name in ("vonage", "whatsapp")
    }
    later = {name: codes(name, kind=OutcomeKind.NOT_SENT, concern_all=True) for name in ("vonage", "whatsapp")}
    later["whatsapp"].remove("131048")  # opens the breaker at once
    unknown = {name: codes(name, kind=OutcomeKind.UNKNOWN, concern_all=True) for name in ("vonage", "whatsapp")}

    for answer in (twilio_error(20003), twilio_error(20429, status=429), Answer(401, PROXY), Answer(429, PROXY)):
        sandbox.play("twilio", answer)
        await patient.expect_sent("a", "vonage")
        await patient.expect_sent("b", "twilio")
    sandbox.play("twilio", Answer(502, PROXY))
    await expect("twilio", DELIVERY_STATUS_UNKNOWN, ["twilio_http_502"])

    for status, answers in (
        (DELIVERY_STATUS_FAILED, refused),
        (DELIVERY_STATUS_SENT, later),
        (DELIVERY_STATUS_UNKNOWN, unknown),
    ):
        named = answers["vonage"]
        sandbox.play("twilio", *[NO_ROUTE] * len(named))
        sandbox.play("vonage", *map(vonage_status, named))
        reasons = {DELIVERY_STATUS_FAILED: ["twilio_21612"] * len(named), DELIVERY_STATUS_SENT: [""] * len(named)}
        await expect("vonage", status, reasons.get(status, [f"vonage_{code}" for code in named]), by="twilio")

        named = answers["whatsapp"]
        sandbox.play("whatsapp", *(whatsapp_error(int(code)) for code in named))
        reasons = {DELIVERY_STATUS_SENT: [""] * len(named)}
        await expect("whatsapp", status, reasons.get(status, [f"whatsapp_{code}" for code in named]))

    for status, step, reply in (
        (DELIVERY_STATUS_SENT, "MAIL", "450 x"),
        (DELIVERY_STATUS_FAILED, "MAIL", "550 x"),
        (DELIVERY_STATUS_UNKNOWN, "CONTENT", "354 x"),
    ):
        patient.relay.play(step, reply)
        await expect("smtp", status, ["" if status == DELIVERY_STATUS_SENT else f"smtp_{reply[:3]}"])


async def test_whatsapp_refuses_one_person_and_the_fallback_goes(both: TwoOrganizations) -> None:
    both.sandbox.play("whatsapp", whatsapp_error(130472))
    sent = await both.pulsa.send("a", whatsapp="+12025550140", fallbacks=[{"destination": {"sms": "+12025550140"}}])

    async def ended() -> bool:
        otp = (await both.pulsa.call("GetOtp", "a", otp_id=sent.otp.otp_id)).otp
        return [one.status for one in otp.deliveries] == [DELIVERY_STATUS_FAILED, DELIVERY_STATUS_SENT]

    await until(ended)
    assert await both.pulsa.balance("a") == 10_000 - 3
