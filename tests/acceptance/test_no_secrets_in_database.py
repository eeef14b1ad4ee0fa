"""A dump of the database and the log of PostgreSQL contain no destination and no code."""

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

from server.postgres.embedded import _program
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

pytestmark = pytest.mark.plain_postgres
"""They read the log of the one server, and its dump."""


@dataclass(frozen=True, slots=True)
class Leak:
    """The codes that were sent, and what an attacker could copy from PostgreSQL."""

    codes: set[str]
    dump: str
    log: str


@pytest.fixture
def log(database_url: str) -> Path:
    """The log of PostgreSQL, with every statement and parameter that the server sends from now on."""
    with psycopg.connect(database_url, autocommit=True) as owner:
        name = owner.info.dbname
        for setting in ("log_statement = 'all'", "log_parameter_max_length = -1", "log_error_verbosity = 'default'"):
            owner.execute(f"ALTER DATABASE {name} SET {setting}".encode())
        (folder,) = owner.execute("SHOW data_directory").fetchone() or ("",)
    return Path(folder).parent / "postgres.log"


@pytest.fixture
async def leak(database_url: str, tmp_path: Path, log: Path) -> Leak:
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
            await _run_scenario(pulsa, sandbox, database_url)
            dump = _dump(database_url)
            codes = {message["code"] for message in await pulsa.all_messages()}
            codes |= {call.text for call in sandbox.received}
    return Leak(codes, dump, _read(log).removeprefix(before))


async def _run_scenario(pulsa: Deployment, sandbox: ProvidersSandbox, database_url: str) -> None:
    """Make every call with personal data, and leave a delivery with fallbacks pending."""
    await pulsa.call("UpdateAlerts", low_balance_threshold=999, alert_email="alerts@acme.example")
    await pulsa.pay(await pulsa.order(billing_email=BILLING))
    await pulsa.wait_for_balance(1000)
    mailed = await pulsa.send(email=EMAIL, context=CONTEXT, metadata={"note": NOTE}, **EIGHT_DIGITS)
    otp_id, code = mailed.otp.otp_id, await pulsa.code_sent_to(EMAIL.lower())
    wrong = f"{(int(code) + 1) % 10**8:08}"
    assert await reason_of(pulsa.call("VerifyOtp", otp_id=otp_id, code=wrong, context=CONTEXT)) == "WRONG_CODE"
    assert await reason_of(pulsa.call("VerifyOtp", otp_id=otp_id, code=code, context="another")) == "WRONG_CODE"
    await pulsa.call("ResendOtp", otp_id=otp_id, destination={"sms": SMS})
    await pulsa.call("ResendOtp", otp_id=otp_id, destination={"whatsapp": WHATSAPP})
    await pulsa.call("VerifyOtp", otp_id=otp_id, code=code, context=CONTEXT)
    sandbox.play("whatsapp", NOT_ON_WHATSAPP)
    await pulsa.send(whatsapp=WHATSAPP, fallbacks=[to(sms=FALLBACK), to(email=OTHER_EMAIL)], **EIGHT_DIGITS)
    fallen_back = await pulsa.code_sent_to(FALLBACK)
    assert fallen_back in {call.text for call in sandbox.received}
    canceled = await pulsa.send(sms=SMS, **EIGHT_DIGITS)
    await pulsa.call("CancelOtp", otp_id=canceled.otp.otp_id)
    assert await reason_of(pulsa.send(sms="+6281")) == "INVALID_DESTINATION"
    await pulsa.send(email=OTHER_EMAIL, validate_only=True)
    received = len(sandbox.received)
    sandbox.play("whatsapp", *[TRY_LATER] * 20)
    await pulsa.send(whatsapp=WHATSAPP, fallbacks=[to(sms=WAITING), to(email=OTHER_EMAIL)], **EIGHT_DIGITS)
    await until(lambda: len(sandbox.received) > received)
    # The pending one, once the outcomes of the earlier ones are stored.
    await until(lambda: _count_stored_fallbacks(database_url) == 1)


def to(**destination: str) -> dict[str, dict[str, str]]:
    """A fallback."""
    return {"destination": destination}


def _count_stored_fallbacks(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT FROM outbox WHERE fallbacks_sealed IS NOT NULL AND next_attempt_time < 'infinity'"
        ).fetchall()
    return len(rows)


def _read(log: Path) -> str:
    return log.read_text(errors="replace")


def _dump(database_url: str) -> str:
    program = [str(_program("pg_dump")), f"--dbname={database_url}"]
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout  # noqa: S603 - of PostgreSQL


def base64_parts(text: str) -> Iterator[str]:
    """The parts that the Base64 encoding of any data with this text contains, one for each offset."""
    for offset in range(3):
        encoded = b64encode(b"\x00" * offset + text.encode() + b"\x00" * 2).decode()
        yield encoded[4 if offset else 0 : len(text) // 3 * 4]


def encodings_found(text: str, stored: str) -> list[str]:
    """The encodings in which the text occurs in the stored data."""
    lowered, bare = stored.lower(), re.sub(r"[\s().-]", "", stored)
    occurrences = {
        "plain": text.lower() in lowered,
        "without separators": text.isdigit() and text in bare,
        "in hexadecimal": text.encode().hex() in lowered or text.lower().encode().hex() in lowered,
        "in Base64": any(encoded in stored for spelling in {text, text.lower()} for encoded in base64_parts(spelling)),
    }
    return [encoding for encoding, occurs in occurrences.items() if occurs]


def has_code(code: str, stored: str) -> bool:
    """Whether the code occurs on its own, not among the digits of an id or a time."""
    match = re.search(rf"(?<![0-9a-f.]){code[:4]}[ -]?{code[4:]}(?![0-9a-f])", stored)
    return bool(match) or code.encode().hex() in stored


async def test_neither_a_dump_nor_the_log_contains_a_destination_or_a_code(leak: Leak) -> None:
    people = [EMAIL, OTHER_EMAIL, *(address.partition("@")[0] for address in (EMAIL, OTHER_EMAIL)), *NATIONAL.values()]
    assert len(leak.codes) == 4
    for stored in (leak.dump, leak.log):
        assert {text: found for text in [*people, CONTEXT] if (found := encodings_found(text, stored))} == {}
        assert [code for code in leak.codes if has_code(code, stored)] == []


async def test_what_is_stored_in_plain_text_is_what_the_documentation_lists(leak: Leak) -> None:
    masked = ["j***@mail.example", "+62*********76"]
    for stored in (leak.dump, leak.log):
        assert [text for text in [BILLING, "alerts@acme.example", NOTE, *masked] if text not in stored] == []


@pytest.mark.parametrize(
    "stored", ["to 81234509876", "(0812) 3450-9876", SMS.encode().hex(), b64encode(SMS.encode()).decode()]
)
def test_a_number_is_found_in_every_encoding(stored: str) -> None:
    assert encodings_found(NATIONAL[SMS], stored)
    assert has_code("12345678", "code 1234 5678.")
    assert has_code("12345678", '{"code": "12345678"}')
    assert not has_code("12345678", "a12345678 00:00.12345678")
