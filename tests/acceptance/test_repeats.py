"""A repeated request_id gets its first answer, whatever was changed since the first call."""

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid1, uuid4

import pytest

from server.credits import pricing
from server.ids import first_id
from server.providers import templates
from tests.acceptance.deployment import Deployment, deployed
from tests.callers import reason_of

PHONE: Final = "+6281234567890"
BEFORE: Final = {"cooldown_seconds": 0}
NEW_KEY: Final = f"new:{b64encode(b'n' * 32).decode()}"


def _prices(folder: Path) -> dict[str, Any]:
    prices = Path(pricing.__file__).with_suffix(".toml").read_text()
    for old, new in (("minimum_credits = 1_000", "minimum_credits = 2_000"), ("SMS = 3", "SMS = 2_000")):
        assert old in prices
        prices = prices.replace(old, new)
    changed = folder / "prices.toml"
    changed.write_text(prices.replace("[1_000, ", "["))
    return {"pricing": changed}


def _templates(folder: Path) -> dict[str, Any]:
    english = Path(templates.__file__).parent / "messages" / "en.toml"
    (folder / "templates").mkdir()
    (folder / "templates" / "en.toml").write_text(english.read_text().replace("Your", "A"))
    return {"channel": {"sms": "console", "templates": folder / "templates"}}


CHANGES: Final[dict[str, Callable[[Path], dict[str, Any]]]] = {
    "area": lambda _: {"limit": BEFORE | {"blocked_areas": "ID"}},
    "channel": lambda _: {"channel": {"email": "console"}},
    "provider": lambda _: {
        "channel": {"sms": "vonage"},
        "vonage": {"api_key": "key", "api_secret": "secret", "sender": "Pulsa", "base_url": "http://127.0.0.1:1"},
    },
    "price": _prices,
    "key": lambda _: {"secret": {"keys": NEW_KEY, "digest_keys": NEW_KEY}},
    "template": _templates,
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_repeat_gets_its_first_answer_after_a_change(change: str, database_url: str, tmp_path: Path) -> None:
    ids = {rpc: str(uuid4()) for rpc in ("SendOtp", "ResendOtp", "CreateTopUp", "AdjustCredits")}

    async def call_all(deployment: Deployment, otp_id: str) -> list[Any]:
        send = await deployment.send(sms=PHONE, request_id=ids["SendOtp"])
        otp_id = otp_id or send.otp.otp_id
        resend = await deployment.call("ResendOtp", otp_id=otp_id, request_id=ids["ResendOtp"])
        adjusted = await deployment.call(
            "AdjustCredits", adjust_credits=5, reason="goodwill", request_id=ids["AdjustCredits"]
        )
        top_up = await deployment.order(request_id=ids["CreateTopUp"])
        assert {send.replayed, resend.replayed} == {bool(first)}
        charges = [(each.credits_charged, each.available_credits, each.ledger_sequence) for each in (send, resend)]
        return [send.otp.otp_id, *charges, adjusted.ledger_entry, top_up.top_up_id, top_up.total]

    first: list[Any] = []
    async with deployed(database_url, tmp_path, limit=BEFORE) as deployment:
        await deployment.grant(20)
        first = await call_all(deployment, "")

    async with deployed(database_url, tmp_path, **{"limit": BEFORE, **CHANGES[change](tmp_path)}) as deployment:
        assert await call_all(deployment, first[0]) == first
        preview = (await deployment.send(sms=PHONE, request_id=ids["SendOtp"], validate_only=True)).preview
        assert (preview.credits, preview.refusal) == (0, 0)
        other = deployment.send(sms=PHONE, request_id=ids["SendOtp"], code_length=8)
        # A fingerprint whose key has left the ring cannot be compared: the request_id alone says that it is a repeat.
        assert await reason_of(other) == ("" if change == "key" else "REQUEST_ID_REUSED")
        assert await reason_of(deployment.send(sms=PHONE, request_id=ids["AdjustCredits"])) == "REQUEST_ID_REUSED"
        for rpc, call in {
            "ResendOtp": deployment.order(request_id=ids["ResendOtp"]),
            "CreateTopUp": deployment.call(
                "AdjustCredits", adjust_credits=1, reason="r", request_id=ids["CreateTopUp"]
            ),
        }.items():
            assert await reason_of(call) == "REQUEST_ID_REUSED", rpc
        assert await deployment.balance() == first[2][1] + 5


def _uuid1_of(moment: datetime) -> str:
    ticks = (int(moment.timestamp()) + 12_219_292_800) * 10_000_000
    fields = (ticks & 0xFFFFFFFF, ticks >> 32 & 0xFFFF, ticks >> 48, *uuid1().fields[3:])
    return str(UUID(fields=fields, version=1))


async def test_a_new_request_with_a_time_ordered_id_older_than_answers_are_kept_is_refused(pulsa: Deployment) -> None:
    await pulsa.grant(10)
    old, recent = (datetime.now(UTC) - timedelta(days=days) for days in (98, 96))
    for request_id in (str(first_id(old)), _uuid1_of(old)):
        assert await reason_of(pulsa.send(email="jane@mail.example", request_id=request_id)) == "REQUEST_ID_EXPIRED"
        assert await reason_of(pulsa.order(request_id=request_id)) == "REQUEST_ID_EXPIRED"
        adjust = pulsa.call("AdjustCredits", adjust_credits=1, reason="late", request_id=request_id)
        assert await reason_of(adjust) == "REQUEST_ID_EXPIRED"
    assert await pulsa.balance() == 10
    for number, moment in enumerate((recent, datetime.now(UTC) + timedelta(days=365))):
        assert not await reason_of(pulsa.send(email=f"j{number}@mail.example", request_id=str(first_id(moment))))
