"""Codes, encryption of destinations, digests and fingerprints: everything that needs a secret key.

Codes are derived with HOTP and never stored: a stolen database reveals none. Destinations are encrypted with AES-GCM
and looked up by keyed digest, so that a stolen database reveals no destination either.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from server.otps.otp import Otp

KEY_BYTES = 32
DIGEST_BYTES = 16
_NONCE_BYTES = 12


class Crypto:
    """Derives, encrypts and digests with a key ring: secrets of 32 bytes by id.

    The last key of the ring encrypts and makes codes; every key of the ring decrypts and verifies. `digest_secret` is
    the key of all digests: changing it resets every limit that counts by destination.
    """

    def __init__(self, secrets: Mapping[str, bytes], *, digest_secret: bytes) -> None:
        self.key_ids = tuple(secrets)
        self.current_key_id = self.key_ids[-1]
        self._code_keys = {key_id: _derive(secret, b"pulsa code") for key_id, secret in secrets.items()}
        self._ciphers = {key_id: AESGCM(_derive(secret, b"pulsa seal")) for key_id, secret in secrets.items()}
        self._digest_key = _derive(digest_secret, b"pulsa digest")
        self._fingerprint_key = _derive(digest_secret, b"pulsa fingerprint")
        self._current_prefix = self._prefix(self.current_key_id)

    def code_of(self, otp: Otp) -> str:
        """The code of an OTP: HOTP (RFC 4226) with a key derived from its id, organization, purpose and context.

        A resend has the same code; another context has another code. Raises KeyError when the OTP's key is not in the
        key ring.
        """
        binding = b"\x00".join(
            [otp.organization_id.encode(), otp.otp_id.bytes, otp.purpose.encode(), otp.context_digest]
        )
        return hotp(hmac.digest(self._code_keys[otp.code_key_id], binding, "sha256"), 0, digits=otp.code_length)

    def digest(self, text: str) -> bytes:
        """The keyed BLAKE2b digest of a text: 16 bytes that reveal nothing without the key."""
        return hashlib.blake2b(text.encode(), key=self._digest_key, digest_size=DIGEST_BYTES).digest()

    def context_digest(self, context: str) -> bytes:
        """The digest that binds a code to its context; empty without a context."""
        return self.digest(context) if context else b""

    def fingerprint(self, request: bytes) -> bytes:
        """The keyed BLAKE2b digest of a request, 16 bytes: equal only for equal requests."""
        return hashlib.blake2b(request, key=self._fingerprint_key, digest_size=DIGEST_BYTES).digest()

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

    @staticmethod
    def sealed_with(sealed: bytes) -> str:
        """The id of the key that encrypted these bytes."""
        return sealed[1 : 1 + sealed[0]].decode()

    @staticmethod
    def _prefix(key_id: str) -> bytes:
        name = key_id.encode()
        return bytes([len(name)]) + name


def hotp(key: bytes, counter: int, *, digits: int) -> str:
    """The HOTP value of RFC 4226, section 5.3. The cryptography package's HOTP takes 1.5 times as long."""
    mac = hmac.digest(key, counter.to_bytes(8, "big"), "sha1")
    offset = mac[-1] & 0x0F
    number = int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**digits).zfill(digits)


def _derive(secret: bytes, use: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=use).derive(secret)
