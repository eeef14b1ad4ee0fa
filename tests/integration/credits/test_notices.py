"""Mails to the billing contact: once each, tried again while they have not gone out."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from server.channels.channel import Outcome, OutcomeKind
from server.credits.adjustments import adjust_credits
from server.credits.alerts import update_alerts
from server.database.pool import Pool, connection
from server.watch.notices import watch_notices

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass
class Mailbox:
    """An e-mail channel that does what a test says; what it took is in `mails`."""

    kinds: list[OutcomeKind] = field(default_factory=list)
    mails: list[tuple[str, str, str]] = field(default_factory=list)

    async def deliver(self, email: str, subject: str, text: str) -> Outcome:
        self.mails.append((email, subject, text))
        await asyncio.sleep(0)
        return Outcome(self.kinds.pop(0) if self.kinds else OutcomeKind.ACCEPTED, "smtp", failure_reason="smtp_450")


async def put(pool: Pool, kind: str, details: dict[str, Any], *, email: str = "billing@example.com") -> None:
    async with connection(pool) as lent:
        await lent.execute(
            "INSERT INTO notices (organization_id, notice_id, kind, reference_id, email, details, next_attempt_time,"
            " create_time) VALUES ('acme', %s, %s, %s, %s, %s, %s, %s)",
            [uuid4(), kind, str(uuid4()), email, Jsonb(details), NOW, NOW],
        )


async def put_low(pool: Pool) -> None:
    await put(pool, "BALANCE_LOW", {"available_credits": 50, "low_balance_threshold": 100})


async def statuses(pool: Pool) -> list[tuple[str, int, datetime]]:
    async with connection(pool) as lent:
        cursor = await lent.execute("SELECT status, attempts, next_attempt_time FROM notices")
        return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]


async def test_a_low_balance_reaches_the_contact_once(pool: Pool) -> None:
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
    assert await watch_notices(pool, mailbox.deliver, now=now) == 1
    assert await watch_notices(pool, mailbox.deliver, now=now + timedelta(days=1)) == 0
    [(email, subject, text)] = mailbox.mails
    assert (email, subject) == ("billing@example.com", "Your OTP credits are running low")
    assert "acme has 50 credits left, fewer than its alert threshold of 100." in text


@pytest.mark.parametrize(
    ("currency_code", "total", "shown"), [("IDR", "150000", "IDR 150,000"), ("USD", "1234.5", "USD 1,234.50")]
)
async def test_a_payment_is_confirmed_with_what_was_paid_for(
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
    await put(pool, "PAYMENT_CONFIRMED", details)
    await watch_notices(pool, mailbox.deliver, now=NOW)
    [(_, subject, text)] = mailbox.mails
    assert subject == "Payment received: 1,000 credits added"
    assert f"Your payment of {shown} for invoice PULSA-0001 has arrived." in text
    assert "1,000 credits were added to acme, which now has 1,050 credits." in text


async def test_many_replicas_at_once_send_each_notice_once(pool: Pool) -> None:
    mailbox = Mailbox()
    for _ in range(10):
        await put_low(pool)
    tried = await asyncio.gather(*(watch_notices(pool, mailbox.deliver, now=NOW) for _ in range(8)))
    assert (sum(tried), len(mailbox.mails)) == (10, 10)
    assert {status for status, _, _ in await statuses(pool)} == {"SENT"}


@pytest.mark.parametrize("kind", [OutcomeKind.NOT_SENT, OutcomeKind.REJECTED_CONFIGURATION])
async def test_what_did_not_go_out_is_tried_again_ever_later_and_then_given_up(pool: Pool, kind: OutcomeKind) -> None:
    mailbox = Mailbox([kind] * 100)
    await put_low(pool)
    now, pauses = NOW, []
    while (await statuses(pool))[0][0] == "PENDING":
        assert await watch_notices(pool, mailbox.deliver, now=now) == 1
        assert await watch_notices(pool, mailbox.deliver, now=now) == 0
        [(_, _, next_attempt_time)] = await statuses(pool)
        pauses.append((next_attempt_time - now).total_seconds())
        now = next_attempt_time
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert [(status, attempts) for status, attempts, _ in await statuses(pool)] == [("FAILED", 10)]


@pytest.mark.parametrize(
    ("kind", "status"),
    [(OutcomeKind.ACCEPTED, "SENT"), (OutcomeKind.UNKNOWN, "SENT"), (OutcomeKind.REJECTED_DESTINATION, "FAILED")],
)
async def test_what_is_settled_is_not_sent_again(pool: Pool, kind: OutcomeKind, status: str) -> None:
    mailbox = Mailbox([kind])
    await put_low(pool)
    await watch_notices(pool, mailbox.deliver, now=NOW)
    await watch_notices(pool, mailbox.deliver, now=NOW + timedelta(days=1))
    assert len(mailbox.mails) == 1
    assert [each for each, _, _ in await statuses(pool)] == [status]


async def test_what_a_crash_left_is_sent_after_its_lease_and_the_late_one_has_no_say(pool: Pool) -> None:
    await put_low(pool)
    reached, wake = asyncio.Event(), asyncio.Event()

    async def slow(_: str, __: str, ___: str) -> Outcome:
        reached.set()
        await wake.wait()
        return Outcome(OutcomeKind.REJECTED_DESTINATION, "smtp")

    late = asyncio.create_task(watch_notices(pool, slow, now=NOW))
    await reached.wait()
    mailbox = Mailbox()
    assert await watch_notices(pool, mailbox.deliver, now=NOW + timedelta(minutes=4)) == 0
    assert await watch_notices(pool, mailbox.deliver, now=NOW + timedelta(minutes=5)) == 1
    wake.set()
    assert await late == 1
    assert [(status, attempts) for status, attempts, _ in await statuses(pool)] == [("SENT", 2)]


async def test_one_notice_that_breaks_off_does_not_keep_the_others(pool: Pool) -> None:
    await put(pool, "BALANCE_LOW", {})
    await put_low(pool)
    mailbox = Mailbox()
    assert await watch_notices(pool, mailbox.deliver, now=NOW) == 1
    assert sorted(status for status, _, _ in await statuses(pool)) == ["PENDING", "SENT"]


async def test_a_notice_that_breaks_off_again_and_again_is_given_up(pool: Pool) -> None:
    await put(pool, "BALANCE_LOW", {})
    mailbox, now = Mailbox(), NOW
    while (await statuses(pool))[0][0] == "PENDING":
        await watch_notices(pool, mailbox.deliver, now=now)
        now += timedelta(minutes=5)
    assert [(status, attempts) for status, attempts, _ in await statuses(pool)] == [("FAILED", 11)]
    assert mailbox.mails == []
