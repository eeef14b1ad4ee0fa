"""Reads the public keys that tokens are verified with, from a JWKS (RFC 7517) or a file of PEM blocks."""

import json
import re
from dataclasses import dataclass

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey

_MINIMUM_RSA_BITS = 2048
_PEM_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key and the only algorithm it may be used with: a token cannot choose another."""

    key: PublicKey
    algorithm: str
    name: str | None
    """The `kid` of a JWKS key. None matches every token: keys of a PEM file have no names."""


def read_keys(content: bytes) -> tuple[VerificationKey, ...]:
    """Return the usable keys of a file, in its order. Raises ValueError, without quoting the file, when there is none.

    Usable are keys for EdDSA, ES256 and RS256; keys of a JWKS whose `use` is not `sig` are skipped.
    """
    keys = _from_jwks(content) if content.lstrip().startswith(b"{") else _from_pem(content)
    if not keys:
        raise ValueError("has no public key for EdDSA (Ed25519), ES256 (P-256) or RS256 (2048 bits or more)")
    return keys


def _from_pem(content: bytes) -> tuple[VerificationKey, ...]:
    try:
        keys = [load_pem_public_key(block) for block in _PEM_BLOCK.findall(content)]
    except UnsupportedAlgorithm as error:
        raise ValueError("has a key of an unsupported kind") from error
    return tuple(usable for key in keys if (usable := _usable(key, None)))


def _from_jwks(content: bytes) -> tuple[VerificationKey, ...]:
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply for a JWKS") from None
    match document:
        case {"keys": [*entries]}:
            return tuple(key for entry in entries if (key := _from_jwk(entry)))
    raise ValueError('is not a JWKS: it has no list "keys"')


def _from_jwk(entry: object) -> VerificationKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    try:
        jwk = jwt.PyJWK(entry)
    except (jwt.PyJWTError, AttributeError, TypeError, ValueError):  # raised by PyJWK for values of a wrong type
        return None
    usable = _usable(jwk.key, jwk.key_id)
    return usable if usable and usable.algorithm == jwk.algorithm_name else None


def _usable(key: object, name: str | None) -> VerificationKey | None:
    if isinstance(key, Ed25519PublicKey):
        return VerificationKey(key, "EdDSA", name)
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return VerificationKey(key, "ES256", name)
    if isinstance(key, RSAPublicKey) and key.key_size >= _MINIMUM_RSA_BITS:
        return VerificationKey(key, "RS256", name)
    return None
