"""Notices to the billing contact: each is mailed once, and retried until it has been sent."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from string import Formatter
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from server.credits.alerts import update_alerts
from server.credits.ledger import adjust_credits
from server.credits.notices import TEXTS, SendMail, send_due_notices
from server.postgres.pool import Pool, acquire
from server.providers.provider import Outcome, OutcomeKind
from server.providers.templates import Rendered

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass
class Mailbox:
    """A mailer that records each mail."""

    kinds: list[OutcomeKind] = field(default_factory=list)
    """The outcomes of the next mails, ACCEPTED after the last of them."""
    mails: list[tuple[str, Rendered]] = field(default_factory=list)

    async def send(self, email: str, rendered: Rendered) -> Outcome:
        self.mails.append((email, rendered))
        await asyncio.sleep(0)
        return Outcome(self.kinds.pop(0) if self.kinds else OutcomeKind.ACCEPTED, "smtp", failure_reason="smtp_450")


async def send_due(pool: Pool, send_mail: SendMail, *, now: datetime) -> int:
    """Run the periodic job once; returns how many notices were tried."""
    return await send_due_notices(pool, send_mail, now=now, limit=16)


async def insert_notice(pool: Pool, kind: str, details: dict[str, Any], *, email: str = "billing@example.com") -> None:
    async with acquire(pool) as connection:
        await connection.execute(
            "INSERT INTO notices (organization_id, notice_id, kind, reference_id, email, details, next_attempt_time,"
            " create_time) VALUES ('acme', %s, %s, %s, %s, %s, %s, %s)",
            [uuid4(), kind, str(uuid4()), email, Jsonb(details), NOW, NOW],
        )


async def insert_low_balance(pool: Pool) -> None:
    await insert_notice(pool, "BALANCE_LOW", {"available_credits": 50, "low_balance_threshold": 100})


async def statuses(pool: Pool) -> list[tuple[str, int, datetime]]:
    async with acquire(pool) as connection:
        cursor = await connection.execute("SELECT status, attempts, next_attempt_time FROM notices")
        return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]


async def test_a_low_balance_is_mailed_to_the_contact_once(pool: Pool) -> None:
    mailbox, now = Mailbox(), datetime.now(UTC)
    await update_alerts(
        pool, "acme", low_balance_threshold=100, alert_email="billing@example.com", default_threshold=100, now=now
    )
    for credits in (150, -100, -1):
        await adjust_credits(
            pool,
            "acme",
            request_id=uuid4(),
            credits=credits,
            reason="test",
            created_by="test",
            low_balance_threshold=100,
            now=now,
        )
    assert await send_due(pool, mailbox.send, now=now) == 1
    assert await send_due(pool, mailbox.send, now=now + timedelta(days=1)) == 0
    [(email, mail)] = mailbox.mails
    assert (email, mail.subject) == ("billing@example.com", "Your OTP credits are running low")
    assert (
        f"acme has 50 credits left on {now:%Y-%m-%d %H:%M} (UTC), fewer than its alert threshold of 100." in mail.text
    )


@pytest.mark.parametrize(
    ("currency_code", "total", "shown"), [("IDR", "150000", "IDR 150,000"), ("USD", "1234.5", "USD 1,234.50")]
)
async def test_a_confirmed_payment_names_the_amount_the_invoice_and_the_credits(
    pool: Pool, currency_code: str, total: str, shown: str
) -> None:
    mailbox = Mailbox()
    details = {
        "credits": 1000,
        "available_credits": 1050,
        "currency_code": currency_code,
        "total": total,
        "invoice_number": "PULSA-0001",
    }
    await insert_notice(pool, "PAYMENT_CONFIRMED", details)
    await send_due(pool, mailbox.send, now=NOW)
    [(_, mail)] = mailbox.mails
    assert mail.subject == "Payment received: 1,000 credits added"
    assert f"Your payment of {shown} for invoice PULSA-0001 arrived on 2026-11-22 12:00 (UTC)." in mail.text
    assert "1,000 credits were added to acme, which now has 1,050 credits." in mail.text


@pytest.mark.parametrize(
    ("locale", "language", "direction", "total"),
    [
        ("in_ID", "id", "ltr", "USD 1.234,50"),
        ("ar-EG", "ar", "rtl", "USD 1,234.50"),
        ("fr", "en", "ltr", "USD 1,234.50"),
    ],
)
async def test_a_notice_is_a_letter_to_the_organization_in_its_contacts_language_and_time(
    pool: Pool, locale: str, language: str, direction: str, total: str
) -> None:
    mailbox = Mailbox()
    await update_alerts(
        pool,
        "acme",
        low_balance_threshold=None,
        alert_email=None,
        locale=locale,
        time_zone="Asia/Jakarta",
        default_threshold=0,
        now=NOW,
    )
    async with acquire(pool) as connection:
        await connection.execute("UPDATE accounts SET billing_name = 'Acme <b> & Sons'")
    await insert_notice(
        pool,
        "PAYMENT_CONFIRMED",
        {
            "credits": 1000,
            "available_credits": 1050,
            "currency_code": "USD",
            "total": "1234.5",
            "invoice_number": "PULSA-1",
        },
    )
    await send_due(pool, mailbox.send, now=NOW)
    [(_, mail)] = mailbox.mails
    assert "Acme <b> & Sons (acme)" in mail.text
    assert "2026-11-22 19:00 (Asia/Jakarta)" in mail.text
    assert total in mail.text
    assert mail.html.startswith(f'<!doctype html>\n<html lang="{language}" dir="{direction}"')
    assert "Acme &lt;b&gt; &amp; Sons (acme)" in mail.html
    assert "<b>" not in mail.html


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_every_language_has_every_notice() -> None:
    for texts in TEXTS.values():
        assert texts.keys() == TEXTS["en"].keys()
        for kind in ("PAYMENT_CONFIRMED", "BALANCE_LOW"):
            for field_name in ("subject", "text"):
                names = placeholders(texts[kind][field_name])
                assert names == placeholders(TEXTS["en"][kind][field_name])


async def test_many_replicas_at_once_send_each_notice_once(pool: Pool) -> None:
    mailbox = Mailbox()
    for _ in range(10):
        await insert_low_balance(pool)
    tried = await asyncio.gather(*(send_due(pool, mailbox.send, now=NOW) for _ in range(8)))
    assert (sum(tried), len(mailbox.mails)) == (10, 10)
    assert {status for status, _, _ in await statuses(pool)} == {"SENT"}


@pytest.mark.parametrize("kind", [OutcomeKind.NOT_SENT, OutcomeKind.REJECTED_CONFIGURATION])
async def test_a_notice_that_was_not_sent_is_retried_with_growing_pauses_and_fails_after_ten_attempts(
    pool: Pool, kind: OutcomeKind
) -> None:
    mailbox = Mailbox([kind] * 100)
    await insert_low_balance(pool)
    now, pauses = NOW, []
    while (await statuses(pool))[0][0] == "PENDING":
        assert await send_due(pool, mailbox.send, now=now) == 1
        assert await send_due(pool, mailbox.send, now=now) == 0
        [(_, _, next_attempt_time)] = await statuses(pool)
        pauses.append((next_attempt_time - now).total_seconds())
        now = next_attempt_time
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert [(status, attempts) for status, attempts, _ in await statuses(pool)] == [("FAILED", 10)]


@pytest.mark.parametrize(
    ("kind", "status"),
    [(OutcomeKind.ACCEPTED, "SENT"), (OutcomeKind.UNKNOWN, "SENT"), (OutcomeKind.REJECTED_DESTINATION, "FAILED")],
)
async def test_a_notice_with_a_final_outcome_is_not_sent_again(pool: Pool, kind: OutcomeKind, status: str) -> None:
    mailbox = Mailbox([kind])
    await insert_low_balance(pool)
    await send_due(pool, mailbox.send, now=NOW)
    await send_due(pool, mailbox.send, now=NOW + timedelta(days=1))
    assert len(mailbox.mails) == 1
    assert [each for each, _, _ in await statuses(pool)] == [status]


async def test_a_notice_whose_lease_expired_is_sent_again_and_the_late_outcome_is_ignored(pool: Pool) -> None:
    await insert_low_balance(pool)
    called, answer = asyncio.Event(), asyncio.Event()

    async def slow(_: str, __: Rendered) -> Outcome:
        called.set()
        await answer.wait()
        return Outcome(OutcomeKind.REJECTED_DESTINATION, "smtp")

    late = asyncio.create_task(send_due(pool, slow, now=NOW))
    await called.wait()
    mailbox = Mailbox()
    assert await send_due(pool, mailbox.send, now=NOW + timedelta(minutes=4)) == 0
    assert await send_due(pool, mailbox.send, now=NOW + timedelta(minutes=5)) == 1
    answer.set()
    assert await late == 1
    assert [(status, attempts) for status, attempts, _ in await statuses(pool)] == [("SENT", 2)]


async def test_a_notice_that_raises_does_not_block_the_others(pool: Pool) -> None:
    await insert_notice(pool, "BALANCE_LOW", {})
    await insert_low_balance(pool)
    mailbox = Mailbox()
    assert await send_due(pool, mailbox.send, now=NOW) == 1
    assert sorted(status for status, _, _ in await statuses(pool)) == ["PENDING", "SENT"]


async def test_a_notice_that_raises_in_every_attempt_fails(pool: Pool) -> None:
    await insert_notice(pool, "BALANCE_LOW", {})
    mailbox, now = Mailbox(), NOW
    while (await statuses(pool))[0][0] == "PENDING":
        await send_due(pool, mailbox.send, now=now)
        now += timedelta(minutes=5)
    assert [(status, attempts) for status, attempts, _ in await statuses(pool)] == [("FAILED", 11)]
    assert mailbox.mails == []
