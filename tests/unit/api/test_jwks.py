"""The keys that verify tokens: chosen by name, rotated, and never of a weak kind."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from server.api import auth
from server.api.auth import TokenVerifier, mint
from server.api.jwks import PublicKey, read_keys
from server.cli import doctor
from server.cli.token import development_key
from server.errors import TokenInvalid
from tests.waiting import until

OLD, NEW = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def jwk(key: PublicKey, algorithm: str, **changes: Any) -> dict[str, Any]:
    kind: Any = jwt.get_algorithm_by_name(algorithm)
    return dict(kind.to_jwk(key, as_dict=True)) | changes


def jwks(**keys: Ed25519PrivateKey) -> bytes:
    return json.dumps({"keys": [jwk(key.public_key(), "EdDSA", kid=kid) for kid, key in keys.items()]}).encode()


def token(key: Ed25519PrivateKey, kid: str | None = None) -> str:
    claims = {"sub": "s", "aud": "pulsa", "exp": 4_000_000_000, "organization_id": "acme", "permissions": []}
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": kid} if kid else None)


def pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


def is_good(verifier: TokenVerifier, candidate: str) -> bool:
    try:
        verifier.verify(candidate)
    except TokenInvalid:
        return False
    return True


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(jwks(old=OLD))
    return path


def test_a_token_names_its_key(file: Path) -> None:
    file.write_bytes(jwks(old=OLD, new=NEW))
    verifier = TokenVerifier(file)

    assert is_good(verifier, token(OLD, "old"))
    assert is_good(verifier, token(NEW, "new"))
    assert is_good(verifier, token(NEW))
    assert not any(is_good(verifier, wrong) for wrong in (token(OLD, "new"), token(NEW, "old"), token(NEW, "newer")))


def test_keys_are_rotated_and_a_removed_key_is_refused_at_once(file: Path) -> None:
    verifier = TokenVerifier(file)
    verifier.verify(token(OLD, "old"))

    file.write_bytes(jwks(old=OLD, new=NEW))
    verifier.reload()
    assert is_good(verifier, token(OLD, "old"))
    assert is_good(verifier, token(NEW, "new"))

    file.write_bytes(jwks(new=NEW))
    verifier.reload()
    assert is_good(verifier, token(NEW, "new"))
    assert not is_good(verifier, token(OLD, "old"))


def test_a_token_is_accepted_until_it_ends_or_its_key_is_removed(file: Path) -> None:
    now = time.time()
    verifier = TokenVerifier(file, leeway_seconds=5, clock=lambda: now)
    caller = verifier.verify(token(OLD, "old"))

    file.write_bytes(jwks(new=NEW, old=OLD))
    verifier.reload()
    assert verifier.still_accepts(caller)
    now = caller.expire_time + 4
    assert verifier.still_accepts(caller)
    now = caller.expire_time + 5
    assert not verifier.still_accepts(caller)

    now = time.time()
    file.write_bytes(jwks(new=NEW))
    verifier.reload()
    assert not verifier.still_accepts(caller)


def test_the_time_of_the_last_usable_file_is_a_metric(file: Path) -> None:
    def read_time() -> float | None:
        return REGISTRY.get_sample_value("pulsa_token_keys_read_timestamp_seconds")

    now = 1000.0
    verifier = TokenVerifier(file, clock=lambda: now)
    assert read_time() == 1000

    now = 1001.0
    verifier.reload()
    assert read_time() == 1001

    now = 1002.0
    good = file.read_bytes()
    file.write_bytes(b"{")
    verifier.reload()
    assert read_time() == 1001

    file.write_bytes(good)
    verifier.reload()
    assert read_time() == 1002


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b'{"keys": []}',
        b'{"keys": 1}',
        b'{"keys": [1, {}]}',
        b'{"keys": [{"kty": {}}]}',
        b'{"keys": [{"kty": "oct", "kid": "backup"}]}',
        pytest.param(pem(OLD)[:60], id="the beginning of a PEM block"),
    ],
)
def test_a_broken_file_changes_nothing_and_is_logged_once(file: Path, broken: bytes) -> None:
    verifier = TokenVerifier(file)

    file.write_bytes(broken)
    with capture_logs() as lines:
        verifier.reload()
        verifier.reload()

    assert is_good(verifier, token(OLD, "old"))
    assert [(line["event"], line["alert"]) for line in lines] == [("token_keys_not_reloaded", True)]
    with pytest.raises(ValueError, match=r"."):
        TokenVerifier(file)


class UnreadablePath:
    """A file whose reading fails in an unforeseen way."""

    def read_bytes(self) -> bytes:
        raise RuntimeError


async def test_the_reloading_outlives_every_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_RELOAD_SECONDS", 0.01)
    verifier = TokenVerifier(file)
    reloading = asyncio.create_task(verifier.reload_on_change())
    with capture_logs() as lines:
        monkeypatch.setattr(verifier, "_key_file", UnreadablePath())
        await until(lambda: bool(lines) or reloading.done())
        await asyncio.to_thread(file.write_bytes, b'{"keys": [{"kty": "oct", "kid": "backup"}]}')
        monkeypatch.setattr(verifier, "_key_file", file)
        await until(lambda: len(lines) == 2 or reloading.done())
        await asyncio.to_thread(replace_atomically, file, jwks(new=NEW))
        await until(lambda: is_good(verifier, token(NEW, "new")) or reloading.done())
    assert not reloading.done()
    reloading.cancel()

    assert not is_good(verifier, token(OLD, "old"))
    assert [(line["event"], line.get("why")) for line in lines] == [
        ("token_keys_not_reloaded", "RuntimeError"),
        ("token_keys_not_reloaded", "ValueError"),
        ("token_keys_reloaded", None),
    ]


def replace_atomically(file: Path, content: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


def test_an_unusable_key_beside_good_ones_is_skipped_with_a_warning_that_names_it(file: Path) -> None:
    verifier = TokenVerifier(file)
    small = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 - the key must be weak
    content = json.loads(jwks(old=OLD, new=NEW))
    content["keys"] += [
        {"kty": "oct", "kid": "backup"},
        jwk(small, "RS256", kid="a\nb" + "x" * 1000),
        {"kty": "RSA"},
        jwk(OLD.public_key(), "EdDSA", use="enc", kid="for encryption"),
    ]
    file.write_text(json.dumps(content))

    with capture_logs() as lines:
        verifier.reload()
        verifier.reload()

    assert is_good(verifier, token(NEW, "new"))
    skipped = [(line["key"], line["log_level"]) for line in lines if line["event"] == "token_key_skipped"]
    names = ("backup", "a\ufffdb" + "x" * 61, "key 5")
    assert skipped == [(name, "warning") for name in names]
    assert verifier.unusable_keys == names


def test_an_unusable_block_of_a_pem_file_is_skipped(file: Path) -> None:
    damaged = pem(OLD).replace(b"\nMC", b"\nAA")
    file.write_bytes(damaged + pem(NEW))
    verifier = TokenVerifier(file)

    assert is_good(verifier, token(NEW))
    assert verifier.unusable_keys == ("key 1",)


def test_doctor_warns_of_the_keys_that_are_skipped_and_names_them(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(jwks(old=OLD))
    content["keys"].append({"kty": "oct", "kid": "backup"})
    file.write_text(json.dumps(content))
    monkeypatch.setenv("PULSA_TOKEN_KEYS", str(file))
    monkeypatch.setattr(doctor, "_CHECKS", [(name, check) for name, check in doctor._CHECKS if name == "tokens"])

    assert doctor.doctor() == 0
    found = f"verified with the keys in {file}, audience pulsa"
    line = f"warn  tokens: {found}; remove or mend those that cannot verify tokens: backup"
    assert line in capsys.readouterr().out.splitlines()


def test_a_file_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ValueError, match="nested"):
        read_keys(b'{"keys": ' + b"[" * 100_000)


def test_a_file_that_was_deleted_changes_nothing(file: Path) -> None:
    verifier = TokenVerifier(file)

    file.unlink()
    verifier.reload()

    assert is_good(verifier, token(OLD, "old"))


async def test_keys_are_reloaded_periodically(file: Path) -> None:
    verifier = TokenVerifier(file)
    keeping = asyncio.create_task(verifier.reload_on_change())
    await asyncio.to_thread(file.write_bytes, jwks(new=NEW))

    async with asyncio.timeout(20):
        while not is_good(verifier, token(NEW, "new")):  # noqa: ASYNC110 - a reload sets no event
            await asyncio.sleep(0.05)
    keeping.cancel()


def test_weak_keys_and_keys_for_another_use_are_left_out() -> None:
    small = rsa.generate_private_key(65537, 1024)  # noqa: S505 - the key must be weak
    other_curve = ec.generate_private_key(ec.SECP384R1())
    good = jwk(OLD.public_key(), "EdDSA")
    unusable = [
        jwk(small.public_key(), "RS256"),
        jwk(other_curve.public_key(), "ES384"),
        jwk(OLD.public_key(), "EdDSA", use="enc"),
        jwk(rsa.generate_private_key(65537, 2048).public_key(), "RS256", alg="RS512"),
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "oct"},
        {"kty": "unheard of"},
        {"kty": {}},
        {"kty": "RSA", "n": [], "e": 3},
        {"kty": "OKP", "crv": "Ed25519", "x": "é"},
    ]

    assert [key.algorithm for key in read_keys(json.dumps({"keys": [*unusable, good]}).encode()).keys] == ["EdDSA"]
    for content in (json.dumps({"keys": unusable}).encode(), pem(small) + pem(other_curve)):
        with pytest.raises(ValueError, match="no public key"):
            read_keys(content)


def test_the_development_key_is_kept_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"

    key = development_key(folder)
    minted = mint(key.private_key(), subject="dev", organization_id="*", permissions=["otp.send"], lifetime_seconds=60)

    assert development_key(folder).private_key() == key.private_key()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    caller = TokenVerifier(key.public_key_file).verify(minted)
    assert (caller.subject, caller.organization_id, caller.permissions) == ("dev", "*", frozenset({"otp.send"}))
