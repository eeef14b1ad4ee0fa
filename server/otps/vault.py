"""Everything that needs a secret: codes, sealed destinations, digests and fingerprints.

Codes are derived, never stored: a stolen database gives none. Destinations are sealed with AES-GCM and found again by
keyed digest, so that a stolen database gives no list of people either.
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


class Vault:
    """Works with a ring of named secrets of 32 bytes: the last one makes, all of them read.

    `digest_secret` names destinations; changing it restarts every limit that counts by destination.
    """

    def __init__(self, secrets: Mapping[str, bytes], *, digest_secret: bytes) -> None:
        self.key_ids = tuple(secrets)
        self.current_key_id = self.key_ids[-1]
        self._code_keys = {key_id: _derive(secret, b"pulsa code") for key_id, secret in secrets.items()}
        self._sealers = {key_id: AESGCM(_derive(secret, b"pulsa seal")) for key_id, secret in secrets.items()}
        self._digest_key = _derive(digest_secret, b"pulsa digest")
        self._fingerprint_key = _derive(digest_secret, b"pulsa fingerprint")
        self._current_prefix = self._prefix(self.current_key_id)

    def code_of(self, otp: Otp) -> str:
        """The code of one OTP: HOTP (RFC 4226) under a key that only this OTP, purpose and context have.

        A resend gives the same code; another context gives another. Raises KeyError when the key left the ring.
        """
        binding = b"\x00".join(
            [otp.organization_id.encode(), otp.otp_id.bytes, otp.purpose.encode(), otp.context_digest]
        )
        return hotp(hmac.digest(self._code_keys[otp.code_key_id], binding, "sha256"), 0, digits=otp.code_length)

    def digest(self, text: str) -> bytes:
        """16 bytes that name a text, and tell nothing of it without the secret."""
        return hashlib.blake2b(text.encode(), key=self._digest_key, digest_size=DIGEST_BYTES).digest()

    def context_digest(self, context: str) -> bytes:
        """What binds a code to its context; empty for none."""
        return self.digest(context) if context else b""

    def fingerprint(self, request: bytes) -> bytes:
        """16 bytes that tell two requests apart, and nothing of them without the secret."""
        return hashlib.blake2b(request, key=self._fingerprint_key, digest_size=DIGEST_BYTES).digest()

    def seal(self, text: str, *, organization_id: str) -> bytes:
        """The text encrypted for this organization: key id, nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        sealer = self._sealers[self.current_key_id]
        return self._current_prefix + nonce + sealer.encrypt(nonce, text.encode(), organization_id.encode())

    def unseal(self, sealed: bytes, *, organization_id: str) -> str:
        """What was sealed. Raises KeyError or InvalidTag for another ring's or another organization's bytes."""
        key_id = self.sealed_with(sealed)
        rest = sealed[1 + sealed[0] :]
        nonce, ciphertext = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        return self._sealers[key_id].decrypt(nonce, ciphertext, organization_id.encode()).decode()

    @staticmethod
    def sealed_with(sealed: bytes) -> str:
        """The id of the key that opens these bytes."""
        return sealed[1 : 1 + sealed[0]].decode()

    @staticmethod
    def _prefix(key_id: str) -> bytes:
        name = key_id.encode()
        return bytes([len(name)]) + name


def hotp(key: bytes, counter: int, *, digits: int) -> str:
    """RFC 4226, section 5.3; cryptography's costs half as much again, for each message that leaves."""
    mac = hmac.digest(key, counter.to_bytes(8, "big"), "sha1")
    offset = mac[-1] & 0x0F
    number = int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**digits).zfill(digits)


def _derive(secret: bytes, use: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=use).derive(secret)
