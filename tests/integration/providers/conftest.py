import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.providers.provider import Channel, Message, Outcome
from server.providers.templates import Templates, load_templates
from server.sandbox.providers import ProvidersSandbox

PHONE = "+6281234567890"
EMAIL = "bob.smith@example.com"
CODE = "918273"
SECRETS = (CODE, PHONE, PHONE.removeprefix("+"), EMAIL, "bob.smith")

MakeMessage = Callable[..., Message]


@pytest.fixture(scope="session")
def templates() -> Templates:
    return load_templates(None)


@pytest.fixture
def make_message() -> MakeMessage:
    """Makes messages with the code and the destinations that no output may contain."""

    def make(
        channel: Channel = Channel.SMS,
        *,
        destination: str = "",
        locale: str = "en",
        ttl: timedelta = timedelta(minutes=5),
        now: datetime | None = None,
        domain: str = "",
    ) -> Message:
        normalized = destination or (EMAIL if channel is Channel.EMAIL else PHONE)
        delivery_id, expire_time = uuid4(), (now or datetime.now(UTC)) + ttl
        reference = f"acme@jakarta/{delivery_id.hex}"
        return Message(
            delivery_id, channel, normalized, CODE, "login", locale, expire_time, expire_time, domain, reference
        )

    return make


@pytest.fixture
async def sandbox() -> ProvidersSandbox:
    """The stand-ins for Twilio, Vonage and WhatsApp, served at `sandbox_url`."""
    return ProvidersSandbox()


@pytest.fixture
async def sandbox_url(sandbox: ProvidersSandbox) -> AsyncIterator[str]:
    async with TestServer(sandbox.application()) as server:
        yield str(server.make_url(""))
        sandbox.release()


@pytest.fixture(scope="session")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a self-signed certificate for 127.0.0.1, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = (
        builder.not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(*pem))
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture(autouse=True)
def no_output_has_secrets(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """After each test: no Outcome, no line logged at any level and nothing printed contains a secret."""
    made: list[str] = []
    make = Outcome.__new__

    def record(cls: type[Outcome], *args: Any, **kwargs: Any) -> Outcome:
        made.append(f"{args} {kwargs}")
        return make(cls, *args, **kwargs)

    monkeypatch.setattr(Outcome, "__new__", staticmethod(record))
    # The debug lines of the stand-ins are not the output of the server.
    for name in ("mail", "asyncio"):
        caplog.set_level(logging.WARNING, logger=name)
    caplog.set_level(logging.DEBUG)
    yield
    seen = "\n".join([*made, caplog.text, *capsys.readouterr()])
    assert made
    assert [secret for secret in SECRETS if secret in seen] == []
