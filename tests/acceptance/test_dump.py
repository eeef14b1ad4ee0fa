"""Whoever gets the database, a backup of it or its log gets no destination and no code."""

import re
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiohttp.test_utils import TestServer

from server.database.embedded import _program
from server.sandbox.providers import ProvidersSandbox, whatsapp_error
from tests.acceptance.deployment import Deployment, deployed
from tests.callers import reason_of
from tests.waiting import until

EMAIL, OTHER_EMAIL = "Jane.Quill+otp@Mail.Example", "someone.else@Mail.Example"
SMS, WHATSAPP, FALLBACK, WAITING = "+6281234509876", "+6281298705432", "+447911123456", "+14155550171"
NATIONAL = {SMS: "81234509876", WHATSAPP: "81298705432", FALLBACK: "7911123456", WAITING: "4155550171"}
BILLING, CONTEXT, NOTE = "billing@acme.example", "payment 4711 to Quill", "order 12 of the shop"
NOT_ON_WHATSAPP, TRY_LATER = whatsapp_error(131026), whatsapp_error(130429)
EIGHT_DIGITS: dict[str, Any] = {"code_length": 8}


@dataclass(frozen=True, slots=True)
class Story:
    """What was sent, and what PostgreSQL keeps of it."""

    codes: set[str]
    dump: str
    log: str


@pytest.fixture
def log(database_url: str) -> Path:
    """PostgreSQL's log, which holds every statement and parameter from now on: all that the server ever tells it."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        name = owner.info.dbname
        for setting in ("log_statement = 'all'", "log_parameter_max_length = -1", "log_error_verbosity = 'default'"):
            owner.execute(f"ALTER DATABASE {name} SET {setting}".encode())
        (folder,) = owner.execute("SHOW data_directory").fetchone() or ("",)
    return Path(folder).parent / "postgres.log"


@pytest.fixture
async def story(database_url: str, tmp_path: Path, log: Path) -> Story:
    before = _read(log)
    sandbox = ProvidersSandbox()
    async with TestServer(sandbox.application()) as provider:
        whatsapp = {
            "phone_number_id": "1055",
            "access_token": "token",
            "template_name": "otp",
            "base_url": str(provider.make_url("")),
        }
        changes: dict[str, Any] = {
            "channel": {"email": "console", "whatsapp": "whatsapp", "sms": "console"},
            "whatsapp": whatsapp,
            "limit": {"cooldown_seconds": 0, "unverified_credits_per_prefix": 300},
        }
        async with deployed(database_url, tmp_path, **changes) as pulsa:
            await _live(pulsa, sandbox, database_url)
            dump = _dump(database_url)
            codes = {message["code"] for message in await pulsa.all_messages()}
            codes |= {call.text for call in sandbox.received}
    return Story(codes, dump, _read(log).removeprefix(before))


async def _live(pulsa: Deployment, sandbox: ProvidersSandbox, database_url: str) -> None:
    """Everything that has to do with a person, and a delivery with fallbacks that is still to come."""
    await pulsa.call("UpdateAlerts", low_balance_threshold=999, alert_email="alerts@acme.example")
    await pulsa.pay(await pulsa.order(billing_email=BILLING))
    await pulsa.has_balance(1000)
    mailed = await pulsa.send(email=EMAIL, context=CONTEXT, metadata={"note": NOTE}, **EIGHT_DIGITS)
    otp_id, code = mailed.otp.otp_id, await pulsa.code_sent_to(EMAIL.lower())
    wrong = f"{(int(code) + 1) % 10**8:08}"
    assert await reason_of(pulsa.call("VerifyOtp", otp_id=otp_id, code=wrong, context=CONTEXT)) == "WRONG_CODE"
    assert await reason_of(pulsa.call("VerifyOtp", otp_id=otp_id, code=code, context="another")) == "WRONG_CODE"
    await pulsa.call("ResendOtp", otp_id=otp_id, destination={"sms": SMS})
    await pulsa.call("ResendOtp", otp_id=otp_id, destination={"whatsapp": WHATSAPP})
    await pulsa.call("VerifyOtp", otp_id=otp_id, code=code, context=CONTEXT)
    sandbox.play("whatsapp", NOT_ON_WHATSAPP)
    await pulsa.send(whatsapp=WHATSAPP, fallbacks=[{"sms": FALLBACK}, {"email": OTHER_EMAIL}], **EIGHT_DIGITS)
    fallen_back = await pulsa.code_sent_to(FALLBACK)
    assert fallen_back in {call.text for call in sandbox.received}
    canceled = await pulsa.send(sms=SMS, **EIGHT_DIGITS)
    await pulsa.call("CancelOtp", otp_id=canceled.otp.otp_id)
    assert await reason_of(pulsa.send(sms="+6281")) == "INVALID_DESTINATION"
    await pulsa.send(email=OTHER_EMAIL, validate_only=True)
    received = len(sandbox.received)
    sandbox.play("whatsapp", *[TRY_LATER] * 20)
    await pulsa.send(whatsapp=WHATSAPP, fallbacks=[{"sms": WAITING}, {"email": OTHER_EMAIL}], **EIGHT_DIGITS)
    await until(lambda: len(sandbox.received) > received)
    # The one that waits, once the outcomes of those before it are stored.
    await until(lambda: _count_kept_fallbacks(database_url) == 1)


def _count_kept_fallbacks(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT FROM outbox WHERE fallbacks_sealed IS NOT NULL").fetchall()
    return len(rows)


def _read(log: Path) -> str:
    return log.read_text(errors="replace")


def _dump(database_url: str) -> str:
    program = [str(_program("pg_dump")), f"--dbname={database_url}"]
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout  # noqa: S603 - PostgreSQL's own


def texts_in_base64(text: str) -> Iterator[str]:
    """What every Base64 that the text is somewhere in contains."""
    for offset in range(3):
        encoded = b64encode(b"\x00" * offset + text.encode() + b"\x00" * 2).decode()
        yield encoded[4 if offset else 0 : len(text) // 3 * 4]


def found(text: str, kept: str) -> list[str]:
    """The ways in which what is kept tells the text: as it is, without separators, or encoded."""
    lowered, bare = kept.lower(), re.sub(r"[\s().-]", "", kept)
    ways = {
        "as it is": text.lower() in lowered,
        "without separators": text.isdigit() and text in bare,
        "in hexadecimal": text.encode().hex() in lowered or text.lower().encode().hex() in lowered,
        "in Base64": any(encoded in kept for one in {text, text.lower()} for encoded in texts_in_base64(one)),
    }
    return [way for way, is_so in ways.items() if is_so]


def is_told(code: str, kept: str) -> bool:
    """Whether a code stands there by itself, and not among the digits of an id or a time."""
    alone = re.search(rf"(?<![0-9a-f.]){code[:4]}[ -]?{code[4:]}(?![0-9a-f])", kept)
    return bool(alone) or code.encode().hex() in kept


async def test_neither_a_dump_nor_the_log_holds_a_destination_or_a_code(story: Story) -> None:
    people = [EMAIL, OTHER_EMAIL, *(address.partition("@")[0] for address in (EMAIL, OTHER_EMAIL)), *NATIONAL.values()]
    assert len(story.codes) == 4
    for kept in (story.dump, story.log):
        assert {text: ways for text in [*people, CONTEXT] if (ways := found(text, kept))} == {}
        assert [code for code in story.codes if is_told(code, kept)] == []


async def test_what_is_kept_as_it_is_is_what_the_documents_say(story: Story) -> None:
    masked = ["j***@mail.example", "+62*********76"]
    for kept in (story.dump, story.log):
        assert [text for text in [BILLING, "alerts@acme.example", NOTE, *masked] if text not in kept] == []


@pytest.mark.parametrize(
    "kept", ["to 81234509876", "(0812) 3450-9876", SMS.encode().hex(), b64encode(SMS.encode()).decode()]
)
def test_a_number_is_found_in_every_form(kept: str) -> None:
    assert found(NATIONAL[SMS], kept)
    assert is_told("12345678", "code 1234 5678.")
    assert is_told("12345678", '{"code": "12345678"}')
    assert not is_told("12345678", "a12345678 00:00.12345678")
