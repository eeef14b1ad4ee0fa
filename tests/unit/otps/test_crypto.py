"""Codes and sealed values: bound to their purpose, readable after a rotation, and useless without the secret."""

import hmac
from dataclasses import replace
from random import Random
from uuid import UUID, uuid4

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP

from server.otps.crypto import DIGEST_BYTES, KEY_BYTES, Crypto, hotp
from server.otps.otp import Otp
from tests.unit.otps.sends import an_otp

OLD, NEW, DIGEST = b"1" * KEY_BYTES, b"2" * KEY_BYTES, b"3" * KEY_BYTES
CRYPTO = Crypto({"k1": OLD, "k2": NEW}, digest_secret=DIGEST)


def library_hotp(key: bytes, counter: int, digits: int) -> str:
    """The code as cryptography makes it."""
    return HOTP(key, digits, SHA1(), enforce_key_length=False).generate(counter).decode()  # noqa: S303 - RFC 4226's


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt and one block."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_codes_are_those_of_rfc_4226_appendix_d() -> None:
    secret = b"12345678901234567890"
    assert [hotp(secret, counter, digits=6) for counter in range(10)] == [
        "755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489",
    ]  # fmt: skip


@pytest.mark.parametrize("digits", [6, 7, 8])
def test_codes_are_those_of_another_implementation(digits: int) -> None:
    random = Random(4226)  # noqa: S311 - a test's inputs
    cases = [(random.randbytes(32), random.randrange(1 << 63)) for _ in range(1000)]
    codes = [hotp(*case, digits=digits) for case in cases]
    assert codes == [library_hotp(*case, digits) for case in cases]
    assert any(code.startswith("00") for code in codes)


@pytest.mark.parametrize("code_length", [6, 7, 8])
@pytest.mark.parametrize("key_id", ["k1", "k2"])
def test_a_code_is_the_hotp_of_a_key_that_only_its_otp_has(key_id: str, code_length: int) -> None:
    otp = replace(an_otp(otp_id=UUID(int=5)), code_key_id=key_id, code_length=code_length, context_digest=b"c" * 16)
    binding = b"acme\x00" + UUID(int=5).bytes + b"\x00login\x00" + b"c" * 16
    secret = {"k1": OLD, "k2": NEW}[key_id]
    key = hmac.digest(hkdf(secret, b"pulsa code"), binding, "sha256")
    assert CRYPTO.code_of(otp) == library_hotp(key, 0, code_length)


def test_the_same_otp_has_the_same_code_on_every_replica_and_at_every_time() -> None:
    otp = an_otp()
    replica = Crypto({"k1": OLD, "k2": NEW}, digest_secret=DIGEST)
    later = replace(otp, attempts=3, metadata={"a": "b"}, locale="id", max_attempts=9)
    assert CRYPTO.code_of(otp) == replica.code_of(later)


def codes(otps: list[Otp], crypto: Crypto = CRYPTO) -> list[str]:
    return [crypto.code_of(replace(otp, code_length=8)) for otp in otps]


def test_a_code_is_bound_to_organization_otp_purpose_context_and_key() -> None:
    otps = [an_otp(otp_id=UUID(int=number)) for number in range(20)]
    sets = [
        codes(otps),
        codes([replace(otp, organization_id="other") for otp in otps]),
        codes([replace(otp, otp_id=uuid4()) for otp in otps]),
        codes([replace(otp, purpose="payment") for otp in otps]),
        codes([replace(otp, context_digest=CRYPTO.context_digest("IDR 100")) for otp in otps]),
        codes([replace(otp, code_key_id="k2") for otp in otps]),
        codes(otps, Crypto({"k1": DIGEST}, digest_secret=DIGEST)),
    ]
    assert len({tuple(one) for one in sets}) == len(sets)
    assert all(len(set(one)) == len(otps) for one in sets)


def test_contexts_are_compared_by_digest() -> None:
    digests = {CRYPTO.context_digest(context) for context in ("", "IDR 100", "IDR 101")}
    assert digests == {b"", CRYPTO.digest("IDR 100"), CRYPTO.digest("IDR 101")}
    assert len(CRYPTO.digest("IDR 100")) == DIGEST_BYTES


def test_digests_and_fingerprints_depend_on_the_secret() -> None:
    same = Crypto({"other": NEW}, digest_secret=DIGEST)
    foreign = Crypto({"k1": OLD, "k2": NEW}, digest_secret=OLD)
    assert CRYPTO.digest("bob@example.com") == same.digest("bob@example.com") != foreign.digest("bob@example.com")
    assert CRYPTO.fingerprint(b"x") == same.fingerprint(b"x") != foreign.fingerprint(b"x")
    assert CRYPTO.fingerprint(b"x") != CRYPTO.digest("x")


def test_a_sealed_value_opens_for_its_organization_only() -> None:
    sealed = CRYPTO.seal("bob@example.com", organization_id="acme")
    assert CRYPTO.unseal(sealed, organization_id="acme") == "bob@example.com"
    with pytest.raises(InvalidTag):
        CRYPTO.unseal(sealed, organization_id="other")


def test_a_sealed_value_is_different_each_time_and_does_not_contain_the_plain_text() -> None:
    first, second = (CRYPTO.seal("bob@example.com", organization_id="acme") for _ in range(2))
    assert first != second
    assert b"bob" not in first


def test_a_modified_sealed_value_does_not_open() -> None:
    sealed = CRYPTO.seal("bob@example.com", organization_id="acme")
    with pytest.raises(InvalidTag):
        CRYPTO.unseal(sealed[:-1] + bytes([sealed[-1] ^ 1]), organization_id="acme")


def test_after_a_rotation_old_values_and_codes_are_read_and_new_ones_use_the_new_key() -> None:
    before, otp = Crypto({"k1": OLD}, digest_secret=DIGEST), an_otp()
    sealed = before.seal("bob@example.com", organization_id="acme")
    assert (before.current_key_id, CRYPTO.current_key_id) == ("k1", "k2")
    assert CRYPTO.unseal(sealed, organization_id="acme") == "bob@example.com"
    assert CRYPTO.code_of(otp) == before.code_of(otp)
    assert [Crypto.sealed_with(one) for one in (sealed, CRYPTO.seal("x", organization_id="acme"))] == ["k1", "k2"]


def test_values_and_codes_of_a_removed_key_are_lost() -> None:
    after = Crypto({"k2": NEW}, digest_secret=DIGEST)
    with pytest.raises(KeyError):
        after.unseal(
            Crypto({"k1": OLD}, digest_secret=DIGEST).seal("x", organization_id="acme"), organization_id="acme"
        )
    with pytest.raises(KeyError):
        after.code_of(an_otp())


def test_a_key_may_have_any_name() -> None:
    crypto = Crypto({"schlüssel": OLD}, digest_secret=DIGEST)
    assert crypto.unseal(crypto.seal("x", organization_id="acme"), organization_id="acme") == "x"
