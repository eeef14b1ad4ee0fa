"""Codes, encryption of destinations, digests and fingerprints: everything that needs a secret key.

Codes are derived with HMAC and never stored: a stolen database reveals none. Destinations are encrypted with AES-GCM
and looked up by keyed digest, so that a stolen database reveals no destination either.
"""

import hmac
import os
from base64 import b32decode, b32encode
from collections.abc import Collection, Mapping
from hashlib import blake2b
from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.otps.admission import Send
from server.otps.magic_destinations import TEST_CODES
from server.otps.otp import DIGEST_BYTES, Otp

KEY_BYTES = 32
_NONCE_BYTES = 12
_TOKEN_MAC_BYTES = 8


class Crypto:
    """Derives, encrypts and digests with two key rings: secrets of 32 bytes by id.

    The last key of `secrets` encrypts and makes codes; every key of it decrypts and verifies. The last key of
    `digest_secrets` makes digests; a second one makes each digest once more, for look-ups during a rotation. The
    codes of `test_organizations` are no secret.
    """

    def __init__(
        self,
        secrets: Mapping[str, bytes],
        *,
        digest_secrets: Mapping[str, bytes],
        test_organizations: Collection[str] = (),
    ) -> None:
        self._test_organizations = test_organizations
        self.key_ids = tuple(secrets)
        self.current_key_id = self.key_ids[-1]
        self.digest_key_ids = tuple(digest_secrets)
        self._codes = {
            key_id: hmac.new(_derive(secret, b"pulsa code"), digestmod="sha256") for key_id, secret in secrets.items()
        }
        self._contexts = {key_id: _keyed(secret, b"pulsa context") for key_id, secret in secrets.items()}
        self._ciphers = {key_id: AESGCM(_derive(secret, b"pulsa seal")) for key_id, secret in secrets.items()}
        self._token_keys = {key_id: _keyed(secret, b"pulsa mail token") for key_id, secret in secrets.items()}
        self._current_prefix = _prefix(self.current_key_id)
        self._digest_keys = {key_id: _DigestKey(key_id, secret) for key_id, secret in digest_secrets.items()}
        self._other_digest_key = self._digest_keys[self.digest_key_ids[0]] if len(digest_secrets) > 1 else None
        current = self._digest_keys[self.digest_key_ids[-1]]
        self.digest, self.fingerprint = current.digest, current.fingerprint

    def code_of(self, otp: Otp | Send) -> str:
        """The code of an OTP: an HMAC over its organization, id, purpose and context, reduced to its digits.

        A resend has the same code; another context has another code. All 256 bits are reduced, so that every code is
        equally likely. Raises KeyError when the OTP's key is not in the key ring.

        Nobody gets the message of a test organization: its codes are the beginning of TEST_CODES.
        """
        if otp.organization_id in self._test_organizations:
            return TEST_CODES[: otp.code_length]
        mac = self._codes[otp.code_key_id].copy()
        organization_id, purpose = otp.organization_id.encode(), otp.purpose.encode()
        mac.update(
            b"%c%b%b%c%b%b"
            % (len(organization_id), organization_id, otp.otp_id.bytes, len(purpose), purpose, otp.context_digest)
        )
        return _digits(int.from_bytes(mac.digest()), otp.code_length)

    def context_digest(self, context: str, code_key_id: str) -> bytes:
        """The digest that binds a code to its context, under the code's key; empty without a context.

        It is stored, as a code is derived again for a resend and after a crash, when nobody knows the context. Raises
        KeyError when the key is not in the key ring.
        """
        return _mac(self._contexts[code_key_id], context.encode()) if context else b""

    def other_digest(self, text: str) -> bytes:
        """The digest of a text under the digest ring's other key; empty unless it has two."""
        return self._other_digest_key.digest(text) if self._other_digest_key else b""

    def is_fingerprint_of(self, fingerprint: bytes, content: str) -> bool:
        """Whether the request has this fingerprint, whichever key of the digest ring made it.

        True when its key is no longer in the ring: its request_id alone then says that it is a repeat.
        """
        key = self._digest_keys.get(self.sealed_with(fingerprint))
        return key is None or hmac.compare_digest(fingerprint, key.fingerprint(content))

    def seal(self, text: str, *, organization_id: str) -> bytes:
        """Encrypt a text for an organization: key id, nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self.current_key_id]
        return self._current_prefix + nonce + cipher.encrypt(nonce, text.encode(), organization_id.encode())

    def unseal(self, sealed: bytes, *, organization_id: str) -> str:
        """Decrypt what `seal` returned.

        Raises KeyError or InvalidTag for another key ring or organization, ValueError for other bytes.
        """
        key_id = self.sealed_with(sealed)
        rest = sealed[1 + sealed[0] :]
        nonce, ciphertext = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        return self._ciphers[key_id].decrypt(nonce, ciphertext, organization_id.encode()).decode()

    def mail_token(self, delivery_id: UUID) -> str:
        """The signed token of a mail (ids.MAIL_TOKEN): names the delivery, and does not show its organization."""
        mac = _mac(self._token_keys[self.current_key_id], delivery_id.bytes)[:_TOKEN_MAC_BYTES]
        return b32encode(delivery_id.bytes + mac).decode().rstrip("=").lower()

    def open_mail_token(self, token: str) -> UUID:
        """The delivery's id. Raises ValueError for a token that no key of the ring has signed."""
        content = b32decode(token.upper() + "=")
        name, mac = content[:-_TOKEN_MAC_BYTES], content[-_TOKEN_MAC_BYTES:]
        if not any(hmac.compare_digest(_mac(key, name)[:_TOKEN_MAC_BYTES], mac) for key in self._token_keys.values()):
            raise ValueError("no key has signed it")
        return UUID(bytes=name)

    @staticmethod
    def sealed_with(sealed: bytes) -> str:
        """The id of the key that encrypted these bytes."""
        return sealed[1 : 1 + sealed[0]].decode()


class _DigestKey:
    """A key of the digest ring. Its digests are keyed BLAKE2b: 16 bytes that reveal nothing without the key."""

    def __init__(self, key_id: str, secret: bytes) -> None:
        self._prefix = _prefix(key_id)
        self._digest = _keyed(secret, b"pulsa digest")
        self._fingerprint = _keyed(secret, b"pulsa fingerprint")

    def digest(self, text: str) -> bytes:
        """The digest of a text."""
        return _mac(self._digest, text.encode())

    def fingerprint(self, content: str) -> bytes:
        """The fingerprint of a request, by all that it says: equal only for equal ones; begins with this key's id."""
        return self._prefix + _mac(self._fingerprint, content.encode())


def _keyed(secret: bytes, use: bytes) -> blake2b:
    """BLAKE2b with a derived key, for `_mac`: to copy it is a third faster than to begin with the key each time."""
    return blake2b(key=_derive(secret, use), digest_size=DIGEST_BYTES)


def _mac(keyed: blake2b, message: bytes) -> bytes:
    state = keyed.copy()
    state.update(message)
    return state.digest()


def _digits(number: int, count: int) -> str:
    return str(number % 10**count).zfill(count)


def _prefix(key_id: str) -> bytes:
    name = key_id.encode()
    return bytes([len(name)]) + name


def _derive(secret: bytes, use: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=use).derive(secret)
