"""Tokens: which are accepted, and that all others are refused in the same way."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from server.api.auth import TokenVerifier
from server.api.permissions import ALL_PERMISSIONS
from server.errors import TokenInvalid

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
ED25519 = Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
UNKNOWN_KEY = Ed25519PrivateKey.generate()
BY_ALGORITHM: dict[str, PrivateKey] = {"EdDSA": ED25519, "ES256": P256, "RS256": RSA}


def pem_of(*keys: PrivateKey) -> bytes:
    return b"".join(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in keys)


def claims(**changes: Any) -> dict[str, Any]:
    whole = {
        "sub": "billing-page",
        "aud": "pulsa",
        "exp": time.time() + 60,
        "organization_id": "acme",
        "permissions": ["balance.read", "otp.send"],
    }
    whole |= changes
    return {name: value for name, value in whole.items() if value is not None}


def token(key: PrivateKey = ED25519, algorithm: str = "EdDSA", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm)


def part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.fixture
def verifier(tmp_path: Path) -> TokenVerifier:
    file = tmp_path / "keys.pem"
    file.write_bytes(pem_of(ED25519, P256, RSA))
    return TokenVerifier(file, leeway_seconds=5)


@pytest.mark.parametrize("algorithm", BY_ALGORITHM)
def test_a_valid_token_names_its_caller(verifier: TokenVerifier, algorithm: str) -> None:
    expire_time = int(time.time()) + 60

    caller = verifier.verify(token(BY_ALGORITHM[algorithm], algorithm, exp=expire_time))

    assert (caller.subject, caller.organization_id) == ("billing-page", "acme")
    assert caller.permissions == {"balance.read", "otp.send"}
    assert caller.expire_time == expire_time


def test_only_a_token_for_any_organization_can_have_all_permissions(verifier: TokenVerifier) -> None:
    assert verifier.verify(token(organization_id="*", permissions=["*"])).permissions == ALL_PERMISSIONS
    assert not verifier.verify(token(organization_id="acme", permissions=["*"])).permissions & ALL_PERMISSIONS
    assert verifier.verify(token(organization_id="*", permissions=["stripe.relay"])).permissions == {"stripe.relay"}


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": None},
        {"exp": 0},
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": [1]},
        {"nbf": 4_102_444_800},
        {"sub": None},
        {"sub": ""},
        {"sub": "a\nb"},
        {"sub": "x" * 256},
        {"organization_id": None},
        {"organization_id": ""},
        {"organization_id": "**"},
        {"organization_id": "a b"},
        {"organization_id": "x" * 65},
        {"organization_id": ["acme"]},
        {"permissions": None},
        {"permissions": "otp.send"},
        {"permissions": [1]},
        {"permissions": {"otp.send": True}},
        {"permissions": ["p" * 9000]},
    ],
    ids=lambda changes: ",".join(f"{name}={str(value)[:12]}" for name, value in changes.items()),
)
def test_wrong_claims_are_refused(verifier: TokenVerifier, changes: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid):
        verifier.verify(token(**changes))


def unsigned() -> str:
    return jwt.encode(claims(), "", algorithm="none")


def signed_with_the_public_key() -> str:
    body = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims())}"
    mac = hmac.digest(pem_of(ED25519), body.encode(), "sha256")
    return f"{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


FORGERIES: dict[str, Callable[[], str]] = {
    "algorithm none": unsigned,
    "algorithm none in capitals": lambda: f"{part({'alg': 'NONE'})}.{part(claims())}.",
    "HS256 with the public key as secret": signed_with_the_public_key,
    "an algorithm that is not allowed": lambda: token(RSA, "RS512"),
    "the algorithm of another key": lambda: token(RSA, "PS256"),
    "an unknown key": lambda: token(UNKNOWN_KEY),
    "no algorithm": lambda: f"{part({'typ': 'JWT'})}.{part(claims())}.AAAA",
    "the signature of another token": lambda: token().rpartition(".")[0] + "." + token(sub="b").rpartition(".")[2],
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "two parts": lambda: token().rpartition(".")[0],
    "nothing": lambda: "",
    "deeply nested": lambda: f"{base64.urlsafe_b64encode(b'[' * 5000).decode()}.e30.AAAA",
    "an enormous number": lambda: f"{base64.urlsafe_b64encode(b'1' * 5000).decode()}.e30.AAAA",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_forgeries_are_refused(verifier: TokenVerifier, forge: Callable[[], str]) -> None:
    with pytest.raises(TokenInvalid):
        verifier.verify(forge())


@given(garbage=st.text() | st.lists(st.binary(max_size=40).map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
def test_garbage_is_refused_without_another_error(
    garbage: str | list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "garbage.pem"
    file.write_bytes(pem_of(ED25519))

    with pytest.raises(TokenInvalid):
        TokenVerifier(file).verify(garbage if isinstance(garbage, str) else ".".join(garbage))


@given(position=st.integers(min_value=0), letter=st.characters(codec="ascii"))
def test_a_token_with_one_letter_changed_is_refused(
    position: int, letter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "changed.pem"
    file.write_bytes(pem_of(ED25519))
    good = token()
    last = good.rindex(".") + 85  # the last letter of a signature holds bits that mean nothing
    position %= last
    changed = good[:position] + letter + good[position + 1 :]

    if changed != good:
        with pytest.raises(TokenInvalid):
            TokenVerifier(file).verify(changed)


def test_a_cached_token_is_refused_once_it_has_expired(tmp_path: Path) -> None:
    now = time.time()
    file = tmp_path / "keys.pem"
    file.write_bytes(pem_of(ED25519))
    verifier = TokenVerifier(file, leeway_seconds=5, clock=lambda: now)
    good = token(exp=int(now) + 60)
    verifier.verify(good)

    now += 64
    assert verifier.verify(good).subject == "billing-page"
    now += 2
    with pytest.raises(TokenInvalid):
        verifier.verify(good)


def test_at_most_the_set_number_of_tokens_is_cached_and_the_oldest_are_dropped_first(tmp_path: Path) -> None:
    file = tmp_path / "keys.pem"
    file.write_bytes(pem_of(ED25519))
    verifier = TokenVerifier(file, cached_tokens=2)
    first, second, third = (token(sub=name) for name in "abc")
    callers = {name: verifier.verify(name) for name in (first, second)}
    verifier.verify(first)
    verifier.verify(third)

    assert verifier.verify(first) is callers[first]
    assert verifier.verify(second) is not callers[second]
