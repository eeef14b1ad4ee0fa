"""An issuer of tokens whose keys a test rotates."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.api.permissions import ALL_PERMISSIONS


@dataclass
class Issuer:
    """Signs tokens, and publishes the public keys in a JWKS file."""

    file: Path
    keys: dict[str, Ed25519PrivateKey] = field(default_factory=dict)

    def publish(self, *names: str) -> None:
        """Write a JWKS with exactly these keys."""
        eddsa: Any = jwt.get_algorithm_by_name("EdDSA")
        self.keys |= {name: Ed25519PrivateKey.generate() for name in names if name not in self.keys}
        published = [eddsa.to_jwk(self.keys[name].public_key(), as_dict=True) | {"kid": name} for name in names]
        self.file.write_text(json.dumps({"keys": published}))

    def token(self, name: str, organization_id: str = "acme") -> str:
        """A token with every permission that is signed by this key."""
        claims = {"sub": "ann", "aud": "pulsa", "exp": 4_000_000_000, "organization_id": organization_id}
        claims["permissions"] = sorted(ALL_PERMISSIONS)
        return jwt.encode(claims, self.keys[name], algorithm="EdDSA", headers={"kid": name})
