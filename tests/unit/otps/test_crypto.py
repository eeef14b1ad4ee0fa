"""Codes and sealed values: bound to their purpose, readable after a rotation, and useless without the secret."""

import hmac
from dataclasses import replace
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from cryptography.exceptions import InvalidTag

from server.otps.crypto import KEY_BYTES, Crypto
from server.otps.otp import DIGEST_BYTES, Otp
from tests.unit.otps.sends import an_otp

OLD, NEW, DIGEST = b"1" * KEY_BYTES, b"2" * KEY_BYTES, b"3" * KEY_BYTES
CRYPTO = Crypto({"k1": OLD, "k2": NEW}, digest_secrets={"d1": DIGEST})


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt and one block."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


@pytest.mark.parametrize("code_length", [6, 7, 8])
@pytest.mark.parametrize("key_id", ["k1", "k2"])
def test_a_code_is_an_hmac_over_what_it_is_bound_to(key_id: str, code_length: int) -> None:
    otp = replace(an_otp(), code_key_id=key_id, code_length=code_length, context_digest=b"c" * 16)
    key = hkdf({"k1": OLD, "k2": NEW}[key_id], b"pulsa code")
    made = []
    for number in range(100):
        bound = b"\x04acme" + UUID(int=number).bytes + b"\x05login" + b"c" * 16
        code = int.from_bytes(hmac.digest(key, bound, "sha256"), "big") % 10**code_length
        made.append(CRYPTO.code_of(replace(otp, otp_id=UUID(int=number))))
        assert made[-1] == f"{code:0{code_length}}"
    assert any(code.startswith("0") for code in made)


def test_the_same_otp_has_the_same_code_on_every_replica_and_at_every_time() -> None:
    otp = replace(an_otp(), code_key_id="k1")
    replica = Crypto({"k1": OLD, "k2": NEW}, digest_secrets={"d1": DIGEST})
    later = replace(otp, attempts=3, metadata={"a": "b"}, locale="id", max_attempts=9)
    assert CRYPTO.code_of(otp) == replica.code_of(later)


def codes(otps: list[Otp], crypto: Crypto = CRYPTO, key_id: str = "k1") -> list[str]:
    return [crypto.code_of(replace(otp, code_length=8, code_key_id=key_id)) for otp in otps]


def test_a_code_is_bound_to_organization_otp_purpose_context_and_key() -> None:
    otps, key_id = [an_otp(otp_id=UUID(int=number)) for number in range(20)], "k1"
    sets = [
        codes(otps, key_id=key_id),
        codes([replace(otp, organization_id="other") for otp in otps], key_id=key_id),
        codes([replace(otp, otp_id=uuid4()) for otp in otps], key_id=key_id),
        codes([replace(otp, purpose="payment") for otp in otps], key_id=key_id),
        codes([replace(otp, context_digest=CRYPTO.context_digest("IDR 100", "k1")) for otp in otps], key_id=key_id),
        codes(otps, key_id="k2"),
        codes(otps, Crypto({"k1": DIGEST}, digest_secrets={"d1": DIGEST}), key_id),
    ]
    assert len({tuple(one) for one in sets}) == len(sets)
    assert all(len(set(one)) == len(otps) for one in sets)


def test_a_context_has_a_digest_by_the_key_of_its_code() -> None:
    digests = [CRYPTO.context_digest(context, key_id) for context in ("IDR 100", "IDR 101") for key_id in ("k1", "k2")]
    assert len({*digests, CRYPTO.digest("IDR 100")}) == 5
    assert {len(digest) for digest in digests} == {DIGEST_BYTES}
    assert CRYPTO.context_digest("", "k1") == b""
    with pytest.raises(KeyError):
        CRYPTO.context_digest("IDR 100", "removed")


def test_digests_and_fingerprints_depend_on_the_digest_secret_alone() -> None:
    same = Crypto({"other": NEW}, digest_secrets={"d1": DIGEST})
    foreign = Crypto({"k1": OLD, "k2": NEW}, digest_secrets={"d1": OLD})
    assert CRYPTO.digest("bob@example.com") == same.digest("bob@example.com") != foreign.digest("bob@example.com")
    assert CRYPTO.fingerprint("login") == same.fingerprint("login") != foreign.fingerprint("login")


@pytest.mark.parametrize("first", ["", "d1"])
def test_replicas_at_neighbouring_steps_of_a_rotation_of_digest_keys_find_each_others_digests(first: str) -> None:
    old, known, used, new = (
        Crypto({"k1": OLD}, digest_secrets={name: {first: OLD, "d2": NEW}[name] for name in ring})
        for ring in ([first], ["d2", first], [first, "d2"], ["d2"])
    )
    text = "bob@example.com"
    for one, other in pairwise((old, known, used, new)):
        assert {one.digest(text), one.other_digest(text)} & {other.digest(text), other.other_digest(text)} - {b""}
        assert one.is_fingerprint_of(other.fingerprint(text), text)
        assert other.is_fingerprint_of(one.fingerprint(text), text)
        assert not one.is_fingerprint_of(other.fingerprint("ann@example.com"), text)
    assert [crypto.digest(text) for crypto in (known, used)] == [old.digest(text), new.digest(text)]
    assert (old.other_digest(text), new.other_digest(text)) == (b"", b"")


def test_a_request_id_whose_digest_key_was_removed_is_that_of_a_repeat() -> None:
    after = Crypto({"k1": OLD}, digest_secrets={"d2": NEW})
    assert after.is_fingerprint_of(CRYPTO.fingerprint("login"), "whatever it says")


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
    before, otp = Crypto({"k1": OLD}, digest_secrets={"d1": DIGEST}), an_otp()
    sealed = before.seal("bob@example.com", organization_id="acme")
    assert (before.current_key_id, CRYPTO.current_key_id) == ("k1", "k2")
    assert CRYPTO.unseal(sealed, organization_id="acme") == "bob@example.com"
    assert CRYPTO.code_of(otp) == before.code_of(otp)
    assert [Crypto.sealed_with(one) for one in (sealed, CRYPTO.seal("x", organization_id="acme"))] == ["k1", "k2"]


def test_values_and_codes_of_a_removed_key_are_lost() -> None:
    after = Crypto({"k2": NEW}, digest_secrets={"d1": DIGEST})
    with pytest.raises(KeyError):
        after.unseal(
            Crypto({"k1": OLD}, digest_secrets={"d1": DIGEST}).seal("x", organization_id="acme"), organization_id="acme"
        )
    with pytest.raises(KeyError):
        after.code_of(an_otp())


def test_a_key_may_have_any_name() -> None:
    crypto = Crypto({"schlüssel": OLD}, digest_secrets={"d1": DIGEST})
    assert crypto.unseal(crypto.seal("x", organization_id="acme"), organization_id="acme") == "x"
