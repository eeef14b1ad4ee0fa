"""Coverage-guided fuzzing of the functions that verify webhooks, tokens and key files."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import jwt
import pytest
import stripe._webhook
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from server.api import auth, jwks
from server.api.auth import TokenVerifier, mint
from server.api.jwks import read_keys
from server.api.rules import RULES
from server.cli.token import DevelopmentKey, development_key
from server.credits.stripe import webhooks
from server.credits.stripe.webhooks import parse_event, verify
from server.errors import StripeEventInvalid, TokenInvalid
from tests.acceptance.deployment import WEBHOOK_SECRET
from tests.fuzz.coverage_fuzzer import CoverageFuzzer
from tests.fuzz.progress import ROUNDS, Progress, seeded_random
from tests.fuzz.stripe_events import event, signature_of

JWT = (jwt.api_jwt, jwt.api_jws, jwt.api_jwk, jwt.algorithms)


def explore(target: Callable[[bytes], object], modules: Sequence[ModuleType], seeds: Sequence[bytes]) -> CoverageFuzzer:
    """Fuzz the target. Fails if no input reaches more code than the seeds."""
    fuzzer = CoverageFuzzer(target, modules, seeded_random())
    progress = Progress(f"inputs of {target.__name__}", ROUNDS)
    fuzzer.begin(seeds)
    known = len(fuzzer.steps)
    while progress.is_unfinished:
        fuzzer.explore(100)
        progress.add(100)
    progress.report(f"{len(fuzzer.steps)} steps of the code, {known} by the seeds; {len(fuzzer.kept)} inputs kept")
    assert len(fuzzer.steps) > known
    return fuzzer


def is_event(payload: bytes, signature: str) -> bool:
    try:
        found = verify(payload, signature, secrets=[WEBHOOK_SECRET], now=datetime.now(UTC))
    except StripeEventInvalid:
        return False
    assert parse_event(found.payload) == found
    # Required where the inbox compares the account, and PostgreSQL stores the payload.
    assert found.account_id is None or found.account_id.isascii()
    assert "\0" not in found.payload
    return True


def test_a_signed_payload_is_an_event_or_refused() -> None:
    def signed_payload(payload: bytes) -> bool:
        return is_event(payload, signature_of(payload))

    seeds = [
        event(),
        event(type="charge.refunded", account="acct_1", data={"object": {"object": "charge", "invoice": "in_1"}}),
    ]
    fuzzer = explore(signed_payload, [webhooks], seeds)

    assert any(map(signed_payload, fuzzer.kept))


def test_a_signature_header_is_correct_or_refused() -> None:
    payload = event()

    def signature(header: bytes) -> bool:
        return is_event(payload, header.decode("utf-8", "surrogateescape"))

    good = signature_of(payload).encode()
    fuzzer = explore(signature, [webhooks, stripe._webhook], [good, b"v1=00," + good])

    digest = good.rpartition(b"=")[2]
    assert all(digest in header for header in fuzzer.kept if signature(header))


@pytest.fixture(autouse=True)
def no_debug_logs() -> Iterator[None]:
    """Logging without level debug, which has a line for each refused token."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info"))
    yield
    structlog.reset_defaults()


@pytest.fixture
def key(tmp_path: Path) -> DevelopmentKey:
    return development_key(tmp_path)


def is_caller(verifier: TokenVerifier, token: str) -> bool:
    try:
        caller = verifier.verify(token)
    except TokenInvalid:
        return False
    assert caller.organization_id == "*" or RULES["organization_id"].holds(caller.organization_id)
    assert 0 < len(caller.subject) < 256
    assert all(isinstance(permission, str) for permission in caller.permissions)
    assert caller.expire_time > time.time() - 31
    return True


def test_a_token_identifies_a_caller_or_is_refused(key: DevelopmentKey) -> None:
    verifier = TokenVerifier(key.public_key_file)
    good = mint(
        key.private_key(), subject="ann", organization_id="acme", permissions=["otp.send"], lifetime_seconds=3600
    )
    others = [
        jwt.encode({"sub": "ann"}, "k" * 32, algorithm="HS256"),
        jwt.encode({"sub": "ann"}, "", algorithm="none"),
    ]

    def token(text: bytes) -> bool:
        return is_caller(verifier, text.decode("utf-8", "surrogateescape"))

    fuzzer = explore(token, [auth, *JWT], [good.encode(), *(other.encode() for other in others)])

    # The same signature has several spellings in Base64.
    assert {text.rpartition(b".")[0] for text in fuzzer.kept if token(text)} == {good.encode().rpartition(b".")[0]}


def test_a_signed_token_with_any_claims_identifies_a_caller_or_is_refused(key: DevelopmentKey) -> None:
    verifier = TokenVerifier(key.public_key_file)
    private_key: Any = load_pem_private_key(key.private_key(), password=None)
    good = {"sub": "ann", "aud": "pulsa", "exp": 4_000_000_000, "organization_id": "*", "permissions": ["*"]}

    def claims(payload: bytes) -> bool:
        return is_caller(verifier, jwt.api_jws.encode(payload, private_key, algorithm="EdDSA"))

    seeds = [json.dumps(each).encode() for each in (good, good | {"aud": ["pulsa"], "nbf": 1, "iat": 1, "jti": "1"})]
    explore(claims, [auth, *JWT], seeds)


def test_a_key_file_has_keys_or_is_refused() -> None:
    public: list[Any] = [
        Ed25519PrivateKey.generate().public_key(),
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key(),
    ]
    entries = [
        jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True) | {"kid": "k", "use": "sig", "alg": algorithm}
        for algorithm, key in zip(("EdDSA", "ES256", "RS256"), public, strict=True)
    ]
    seeds = [json.dumps({"keys": entries}).encode(), *(json.dumps({"keys": [entry]}).encode() for entry in entries)]
    seeds += [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in public]

    def key_file(content: bytes) -> bool:
        try:
            return len(read_keys(content).keys) > 0
        except ValueError:
            return False

    explore(key_file, [jwks, *JWT], seeds)
