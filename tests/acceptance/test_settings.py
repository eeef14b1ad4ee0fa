"""Settings of an organization, played by a caller with protos and docs: what its messages say, and what limits them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestServer
from pulsa.credit.v1.channel_pb2 import CHANNEL_SMS, CHANNEL_WHATSAPP
from pulsa.otp.v1.delivery_pb2 import (
    DELIVERY_STATUS_DELIVERED,
    DELIVERY_STATUS_FAILED,
    DELIVERY_STATUS_QUEUED,
    DELIVERY_STATUS_SENT,
    DELIVERY_STATUS_UNKNOWN,
)
from pulsa.otp.v1.settings_pb2 import (
    NUMBER_TYPE_MOBILE,
    REFUND_POLICY_NOT_ACCEPTED,
    REFUND_POLICY_REPORTED_FAILURES,
)

from server.sandbox.providers import ProvidersSandbox, Received, twilio_error, whatsapp_error
from server.sandbox.relay import Relay
from tests.acceptance.deployment import Deployment, deployed
from tests.callers import reason_of, refusal_of
from tests.waiting import until

INDONESIAN = "+6281234567890"
AMERICAN = "+12025550140"


@dataclass(frozen=True, slots=True)
class Providers:
    """A server whose messages go to stand-ins of Twilio, WhatsApp and a mail relay."""

    pulsa: Deployment
    sandbox: ProvidersSandbox
    relay: Relay

    async def sent(self, otp: Any, organization_id: str = "acme") -> Sequence[Any]:
        """The deliveries of an OTP once the last one has its outcome."""

        async def read() -> Any:
            return (await self.pulsa.call("GetOtp", organization_id, otp_id=otp.otp_id)).otp.deliveries

        async def is_settled() -> bool:
            return all(one.status != DELIVERY_STATUS_QUEUED for one in await read())

        await until(is_settled)
        return list(await read())

    async def received_for(self, sent: Any) -> Received:
        """What the provider of a phone's message received."""
        count = len(self.sandbox.received)
        await self.sent(sent.otp)
        await until(lambda: len(self.sandbox.received) >= max(count, 1))
        return self.sandbox.received[-1]

    async def mails_to(self, address: str) -> list[Any]:
        """The mails to an address, oldest first."""
        return [
            message_from_bytes(mail.content, policy=policy.default)
            for mail in self.relay.mails
            if mail.envelope[1] == f"RCPT TO:<{address}>"
        ]


@pytest.fixture
async def providers(database_url: str, tmp_path: Path) -> AsyncIterator[Providers]:
    sandbox = ProvidersSandbox()
    async with TestServer(sandbox.application()) as stand_ins, Relay() as relay:
        url = str(stand_ins.make_url(""))
        changes: dict[str, Any] = {
            "limit": {"cooldown_seconds": 0, "blocked_areas": ["GB"], "sends_per_destination_per_hour": 20},
            "organization": {"refund_choice": True, "test": ["trial"]},
            "channel": {"email": "smtp", "whatsapp": "whatsapp", "sms": "twilio"},
            "smtp": {"host": "127.0.0.1", "port": relay.port, "security": "none", "sender": "no-reply@pulsa.example"},
            "twilio": {"account_sid": "AC1", "auth_token": "token", "sender": "MG1", "base_url": url},
            "whatsapp": {"phone_number_id": "1", "access_token": "token", "template_name": "otp", "base_url": url},
        }
        async with deployed(database_url, tmp_path, **changes) as pulsa:
            await pulsa.grant(10_000)
            yield Providers(pulsa, sandbox, relay)


async def choose(pulsa: Deployment, organization_id: str = "acme", **settings: Any) -> Any:
    """Set these fields."""
    return await pulsa.call("UpdateSettings", organization_id, settings=settings, update_mask={"paths": list(settings)})


async def test_messages_say_who_they_are_from(providers: Providers) -> None:
    pulsa = providers.pulsa
    await pulsa.grant(100, "other")
    senders = [
        {"channel": CHANNEL_SMS, "sender_id": "MGAcme"},
        {"channel": CHANNEL_SMS, "country_code": "US", "sender_id": "+12025550199"},
        {"channel": CHANNEL_WHATSAPP, "sender_id": "4711"},
    ]
    await choose(pulsa, brand_name="Acme & Co", senders=senders, email_reply_to="help@bücher.example")

    indonesian = await providers.received_for(await pulsa.send(sms=INDONESIAN))
    american = await providers.received_for(await pulsa.send(sms=AMERICAN, locale="ar"))
    whatsapp = await providers.received_for(await pulsa.send(whatsapp=INDONESIAN))
    mailed = await pulsa.send(email="jane@mail.example")
    await providers.sent(mailed.otp)
    others = await pulsa.send("other", sms=AMERICAN)
    await providers.sent(others.otp, "other")

    assert indonesian.text.startswith("Acme & Co: ")
    assert (indonesian.fields["From"], american.fields["From"]) == ("MGAcme", "+12025550199")
    assert "MessagingServiceSid" not in indonesian.fields
    assert american.text.startswith("\u2068Acme & Co\u2069: ")
    assert whatsapp.path.endswith("/4711/messages")
    assert len(whatsapp.text) == 6
    [mail] = await providers.mails_to("jane@mail.example")
    [sender] = mail["From"].addresses
    assert (sender.display_name, sender.addr_spec) == ("Acme & Co", "no-reply@pulsa.example")
    assert mail["Reply-To"] == "help@xn--bcher-kva.example"
    assert mail.get_body(("plain",)).get_content().startswith("Acme & Co")
    assert "<bdi>Acme &amp; Co</bdi>" in mail.get_body(("html",)).get_content()
    unbranded = providers.sandbox.received[-1]
    assert unbranded.fields["MessagingServiceSid"] == "MG1"
    assert "Acme" not in unbranded.text


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"brand_name": "Acme\r\nBcc: eve@mail.example"}, "settings.brand_name"),
        ({"email_sender_name": "Acme\r\nBcc: eve@mail.example"}, "settings.email_sender_name"),
        ({"email_reply_to": "help@mail.example\r\nBcc: eve@mail.example"}, "settings.email_reply_to"),
        ({"email_reply_to": "hélp@mail.example"}, "settings.email_reply_to"),
        ({"brand_name": "Şirket"}, "settings.brand_name"),
        ({"brand_name": "acme.example"}, "settings.brand_name"),
        ({"cooldown": {"seconds": 1}}, "settings.cooldown"),
        ({"sends_per_destination_per_hour": 11}, "settings.sends_per_destination_per_hour"),
        ({"number_types": [6]}, "settings.number_types"),
        ({"blocked_areas": ["ZZ"]}, "settings.blocked_areas"),
        ({"refund_policy": REFUND_POLICY_REPORTED_FAILURES}, "settings.refund_policy"),
        ({"senders": [{"channel": CHANNEL_WHATSAPP, "sender_id": "Acme"}]}, "settings.senders"),
        ({"senders": [{"channel": CHANNEL_SMS, "sender_id": "Acme"}] * 2}, "settings.senders"),
    ],
)
async def test_a_choice_beyond_the_operators_limits_is_refused(
    pulsa: Deployment, settings: dict[str, Any], field: str
) -> None:
    refused = await refusal_of(choose(pulsa, **settings))

    assert (refused.reason, {violation.field for violation in refused.violations}) == ("INVALID_FIELDS", {field})
    assert (await pulsa.call("GetSettings")).current.version == 0


async def test_every_change_is_kept_with_its_author_and_one_that_changes_nothing_is_none(pulsa: Deployment) -> None:
    await choose(pulsa, brand_name="Acme", locale="id")
    same = await choose(pulsa, brand_name="Acme")
    second = await pulsa.call("UpdateSettings", settings={"code_length": 8}, expected_version=1)
    refused = await refusal_of(pulsa.call("UpdateSettings", settings={"brand_name": "Eve"}, expected_version=1))
    third = await choose(pulsa, brand_name="")

    assert same.current.version == 1
    assert (refused.reason, refused.metadata) == ("SETTINGS_CHANGED", {"version": "2"})
    assert (second.current.settings.brand_name, third.current.settings.brand_name) == ("Acme", "")
    first_page = await pulsa.call("ListSettingsVersions", page_size=2)
    rest = await pulsa.call("ListSettingsVersions", page_size=2, page_token=first_page.next_page_token)
    versions = [*first_page.settings_versions, *rest.settings_versions]
    assert [(one.version, list(one.changed_fields.paths), one.updated_by) for one in versions] == [
        (3, ["brand_name"], "ann"),
        (2, ["code_length"], "ann"),
        (1, ["brand_name", "locale"], "ann"),
    ]
    assert not rest.next_page_token
    current = await pulsa.call("GetSettings")
    assert current.current == third.current
    effective = current.effective_settings
    assert (effective.locale, effective.code_length, effective.max_attempts) == ("id", 8, 5)
    assert (effective.ttl.seconds, effective.cooldown.seconds) == (300, 30)
    assert NUMBER_TYPE_MOBILE in effective.number_types
    assert effective.refund_policy == REFUND_POLICY_NOT_ACCEPTED
    assert (await pulsa.call("GetSettings", "other")).current.version == 0


async def test_what_a_request_does_not_say_is_the_organizations_default(providers: Providers) -> None:
    pulsa = providers.pulsa
    request_id = str(uuid4())
    first = await pulsa.send(email="jane@mail.example", request_id=request_id)
    await choose(pulsa, locale="id", code_length=8, ttl={"seconds": 60}, max_attempts=2)

    repeat = await pulsa.send(email="jane@mail.example", request_id=request_id)
    default = await pulsa.send(sms=INDONESIAN)
    said = await pulsa.send(sms=AMERICAN, code_length=6, locale="en", ttl={"seconds": 300}, max_attempts=5)

    assert (repeat.replayed, repeat.otp.otp_id) == (True, first.otp.otp_id)
    await providers.sent(default.otp)
    await providers.sent(said.otp)
    texts = {each.to: each.text for each in providers.sandbox.received}
    assert "adalah kode masuk Anda" in texts[INDONESIAN]
    assert len(texts[INDONESIAN].partition(" ")[0]) == 8
    assert "is your sign-in code" in texts[AMERICAN]
    assert len(texts[AMERICAN].partition(" ")[0]) == 6
    assert default.otp.expire_time.seconds - default.otp.create_time.seconds == 60
    assert said.otp.expire_time.seconds - said.otp.create_time.seconds == 300
    assert (default.otp.attempts_remaining, said.otp.attempts_remaining) == (2, 5)


async def test_areas_limits_and_the_operators_own_hold_together(providers: Providers) -> None:
    pulsa = providers.pulsa
    await choose(
        pulsa,
        allowed_areas=["ID", "GB"],
        blocked_areas=["+62812"],
        cooldown={"seconds": 600},
        sends_per_destination_per_day=2,
    )

    assert await reason_of(pulsa.send(sms="+6281312345678")) == ""
    assert await reason_of(pulsa.send(sms="+6281312345678")) == "RESEND_TOO_SOON"
    assert await reason_of(pulsa.send(sms=INDONESIAN)) == "DESTINATION_BLOCKED"
    assert await reason_of(pulsa.send(sms=AMERICAN)) == "DESTINATION_BLOCKED"
    assert await reason_of(pulsa.send(sms="+447400123456")) == "DESTINATION_BLOCKED"  # by the operator
    await choose(pulsa, cooldown={})
    sends = [await reason_of(pulsa.send(email="jane@mail.example")) for _ in range(3)]
    assert sends == ["", "", "TOO_MANY_SENDS"]


async def test_a_failure_is_followed_by_the_default_fallback(providers: Providers) -> None:
    pulsa = providers.pulsa
    await choose(pulsa, default_fallbacks=[{"fallback_channel": CHANNEL_SMS}])
    providers.sandbox.play("whatsapp", whatsapp_error(131026))

    sent = await pulsa.send(whatsapp=INDONESIAN)

    async def fell_back() -> bool:
        return len(await providers.sent(sent.otp)) == 2

    await until(fell_back)
    deliveries = await providers.sent(sent.otp)
    assert [(one.channel, one.status, one.refunded) for one in deliveries] == [
        (CHANNEL_WHATSAPP, DELIVERY_STATUS_FAILED, True),
        (CHANNEL_SMS, DELIVERY_STATUS_SENT, False),
    ]
    assert {one.settings_version for one in deliveries} == {1}
    assert await pulsa.balance() == 10_000 - 3


async def test_a_retry_has_the_version_that_the_otp_was_sent_with(providers: Providers) -> None:
    pulsa = providers.pulsa
    await choose(pulsa, brand_name="Old")
    providers.sandbox.play("twilio", twilio_error(20429, status=429))
    sent = await pulsa.send(sms=AMERICAN)
    await until(lambda: providers.sandbox.received)
    await choose(pulsa, brand_name="New")

    [delivery] = await providers.sent(sent.otp)

    again = await pulsa.call("ResendOtp", otp_id=sent.otp.otp_id)
    await providers.sent(again.otp)
    assert (delivery.status, delivery.settings_version) == (DELIVERY_STATUS_SENT, 1)
    assert [each.text.partition(":")[0] for each in providers.sandbox.received] == ["Old", "Old", "New"]
    assert [one.settings_version for one in (await pulsa.call("GetOtp", otp_id=sent.otp.otp_id)).otp.deliveries] == [
        1,
        2,
    ]


async def test_a_reported_failure_is_refunded_by_the_policy_of_its_send(providers: Providers) -> None:
    pulsa = providers.pulsa
    before = await pulsa.send(sms=AMERICAN)
    await choose(pulsa, refund_policy=REFUND_POLICY_REPORTED_FAILURES)
    after = await pulsa.send(sms=INDONESIAN)
    refunds = []
    for sent in (before, after):
        [delivery] = await providers.sent(sent.otp)
        report = await pulsa.call(
            "ReportDelivery", delivery_id=delivery.delivery_id, status=DELIVERY_STATUS_FAILED, failure_reason="x"
        )
        refunds.append(report.delivery.refunded)

    assert refunds == [False, True]


async def test_two_servers_spend_exactly_the_cap_and_tell_every_contact_once(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack, Relay() as relay:
        changes: dict[str, Any] = {
            "channel": {"email": "smtp"},
            "organization": {"settings_seconds": 0.1},
            "smtp": {"host": "127.0.0.1", "port": relay.port, "security": "none", "sender": "no-reply@pulsa.example"},
        }
        one = await stack.enter_async_context(deployed(database_url, tmp_path, **changes))
        two = await stack.enter_async_context(deployed(database_url, tmp_path, **changes))
        await one.grant(1000)
        await one.call("UpdateAlerts", alert_email="ann@mail.example")
        for number in range(5):  # before there is a cap
            await one.send(email=f"first{number}@mail.example")
        contacts = [{"contact_email": "bob@mail.example", "locale": "id", "time_zone": "Asia/Jakarta"}]
        await choose(one, daily_credit_cap=25, billing_contacts=contacts)

        sends = [
            server.send(email=f"{number}-{name}@mail.example")
            for number in range(30)
            for name, server in (("one", one), ("two", two))
        ]
        reasons = await asyncio.gather(*map(reason_of, sends))

        assert (reasons.count(""), reasons.count("SPENDING_CAP_REACHED")) == (20, 40)
        assert await one.balance() == 1000 - 25
        refused = await refusal_of(two.send(email="late@mail.example"))
        assert refused.metadata == {"daily_credit_cap": "25", "spent_credits": "25"}
        assert 0 < (refused.retry_after_seconds or 0) <= 86_400
        notices = {address: f"RCPT TO:<{address}>" for address in ("ann@mail.example", "bob@mail.example")}
        await until(lambda: all(any(mail.envelope[1] == to for mail in relay.mails) for to in notices.values()))
        await choose(two, daily_credit_cap=27)
        assert [await reason_of(one.send(email=f"more{number}@mail.example")) for number in range(3)] == [
            "",
            "",
            "SPENDING_CAP_REACHED",
        ]
        told = [mail for mail in relay.mails if mail.envelope[1] in notices.values()]
        assert sorted(mail.envelope[1] for mail in told) == sorted(notices.values())
        subjects = {mail.envelope[1]: message_from_bytes(mail.content, policy=policy.default) for mail in told}
        assert subjects[notices["ann@mail.example"]]["Subject"] == "Your daily spending cap is reached"
        indonesian = subjects[notices["bob@mail.example"]]
        assert indonesian["Subject"] == "Batas pengeluaran harian Anda tercapai"
        assert "(Asia/Jakarta)" in str(indonesian.get_payload(0))


async def test_another_server_uses_changed_settings_soon(database_url: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"organization": {"settings_seconds": 0.1}, "limit": {"cooldown_seconds": 0}}
    async with (
        deployed(database_url, tmp_path, **changes) as one,
        deployed(database_url, tmp_path, **changes) as two,
    ):
        await one.grant(1000)
        await choose(one, blocked_areas=["US"])

        async def is_blocked() -> bool:
            return await reason_of(two.send(sms=AMERICAN)) == "DESTINATION_BLOCKED"

        await until(is_blocked)
        await choose(one, blocked_areas=[])

        async def is_sent() -> bool:  # refused sends do not reach the database: it learns of the change by itself
            return await reason_of(two.send(sms=AMERICAN)) in {"", "TOO_MANY_SENDS"}

        await until(is_sent)


@pytest.mark.parametrize("channel", ["email", "sms"])
async def test_a_test_organization_sends_nothing_and_pays_nothing(providers: Providers, channel: str) -> None:
    pulsa = providers.pulsa
    to = {
        "deliver": {"email": "deliver@example.com", "sms": "+12025550100"}[channel],
        "bounce": {"email": "bounce@example.com", "sms": "+12025550101"}[channel],
        "timeout": {"email": "timeout@example.com", "sms": "+12025550102"}[channel],
        "fraud": {"email": "fraud@example.com", "sms": "+12025550103"}[channel],
    }
    assert (await pulsa.call("GetSettings", "trial")).test_organization

    ended = {}
    for name in ("deliver", "bounce", "timeout"):
        sent = await pulsa.send("trial", **{channel: to[name]})
        assert (sent.credits_charged, sent.available_credits) == (0, 0)
        [delivery] = await providers.sent(sent.otp, "trial")
        ended[name] = (delivery.status, delivery.failure_reason, delivery.provider)
    delivered = await pulsa.send("trial", **{channel: to["deliver"]})
    verified = await pulsa.call("VerifyOtp", "trial", otp_id=delivered.otp.otp_id, code="123456")
    wrong = await reason_of(pulsa.call("VerifyOtp", "trial", otp_id=sent.otp.otp_id, code="654321"))

    assert ended == {
        "deliver": (DELIVERY_STATUS_DELIVERED, "", "test"),
        "bounce": (DELIVERY_STATUS_FAILED, "test_bounced", "test"),
        "timeout": (DELIVERY_STATUS_UNKNOWN, "test_timeout", "test"),
    }
    assert verified.result == 1
    assert wrong == "WRONG_CODE"
    assert await reason_of(pulsa.send("trial", **{channel: to["fraud"]})) == "DESTINATION_BLOCKED"
    assert await reason_of(pulsa.send("acme", **{channel: to["fraud"]})) == ""
    assert (await pulsa.call("ListLedgerEntries", "trial")).ledger_entries == []
    assert (await pulsa.call("VerifyLedger", "trial")).holds
    assert not any(each.to.startswith("+1202555010") and each.to != to["fraud"] for each in providers.sandbox.received)
    assert {mail.envelope[1] for mail in providers.relay.mails} <= {"RCPT TO:<fraud@example.com>"}


async def test_a_bounce_of_a_test_organization_is_followed_by_its_fallback(providers: Providers) -> None:
    pulsa = providers.pulsa
    fallbacks = [{"destination": {"sms": "+12025550100"}}]

    sent = await pulsa.send("trial", email="bounce@example.com", fallbacks=fallbacks)

    async def fell_back() -> bool:
        return len(await providers.sent(sent.otp, "trial")) == 2

    await until(fell_back)
    statuses = [one.status for one in await providers.sent(sent.otp, "trial")]
    assert statuses == [DELIVERY_STATUS_FAILED, DELIVERY_STATUS_DELIVERED]
