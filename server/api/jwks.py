"""Reads the public keys that tokens are verified with, from a JWKS (RFC 7517) or a file of PEM blocks."""

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from server.logs import printable

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


class KeySet(NamedTuple):
    """The keys of a file."""

    keys: tuple[VerificationKey, ...]
    """The usable keys, in the order of the file; at least one."""
    unusable: tuple[str, ...]
    """For each other key its `kid`, printable and short, or its place, such as `key 2`."""


def read_keys(content: bytes) -> KeySet:
    """Read the keys of a file. Raises ValueError, without quoting the file, when none is usable, and nothing else.

    Usable are keys for EdDSA, ES256 and RS256. Keys of a JWKS whose `use` is not `sig` are left out of both lists.
    """
    found = _from_jwks(content) if content.lstrip().startswith(b"{") else _from_pem(content)
    keys = tuple(key for _, key in found if key)
    if not keys:
        raise ValueError("has no public key for EdDSA (Ed25519), ES256 (P-256) or RS256 (2048 bits or more)")
    return KeySet(keys, tuple(name for name, key in found if not key))


_NamedKeys = list[tuple[str, VerificationKey | None]]
"""The name of each key, for people, and the key if it is usable."""


def _from_pem(content: bytes) -> _NamedKeys:
    blocks = enumerate(_PEM_BLOCK.findall(content), start=1)
    return [(f"key {number}", _from_pem_block(block)) for number, block in blocks]


def _from_pem_block(block: bytes) -> VerificationKey | None:
    try:
        return _usable(load_pem_public_key(block), None)
    except Exception:  # noqa: BLE001 - whatever is wrong with one key, the others stay usable
        return None


def _from_jwks(content: bytes) -> _NamedKeys:
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply for a JWKS") from None
    match document:
        case {"keys": [*entries]}:
            signing = (each for each in enumerate(entries, start=1) if _is_for_signatures(each[1]))
            return [(_name(entry, number), _from_jwk(entry)) for number, entry in signing]
    raise ValueError('is not a JWKS: it has no list "keys"')


def _is_for_signatures(entry: object) -> bool:
    return not isinstance(entry, dict) or entry.get("use", "sig") == "sig"


def _name(entry: object, number: int) -> str:
    kid = entry.get("kid") if isinstance(entry, dict) else None
    return printable(kid) if isinstance(kid, str) and kid else f"key {number}"


def _from_jwk(entry: object) -> VerificationKey | None:
    if not isinstance(entry, dict):
        return None
    try:
        jwk = jwt.PyJWK(entry)
    except Exception:  # noqa: BLE001 - PyJWK raises anything for a missing member or a wrong type, KeyError among them
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
