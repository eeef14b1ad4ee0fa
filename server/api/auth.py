"""Authenticates callers: verifies and signs bearer tokens (JWT, RFC 7519).

Claims: `sub`, `aud`, `exp`, `organization_id` (one id, or "*" for a trusted internal service) and `permissions` (a
list). Only with organization_id "*" does the permission "*" grant all permissions; otherwise it grants nothing, so that
a tenant's token has only the permissions that it lists.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
import structlog
from prometheus_client import Gauge

from server.api.jwks import KeySet, VerificationKey, read_keys
from server.api.permissions import ALL_PERMISSIONS
from server.errors import TokenInvalid
from server.ids import ORGANIZATION_ID

READ_TIME: Final = Gauge(
    "pulsa_token_keys_read_timestamp_seconds",
    "When the file of token keys was last read and usable, with several workers the earliest: Unix time.",
    multiprocess_mode="livemin",
)

ANY_ORGANIZATION: Final = "*"
ALL: Final = "*"

_MAXIMUM_TOKEN_LENGTH = 8192
_SUBJECT = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}")
_ORGANIZATION_ID = re.compile(rf"{ORGANIZATION_ID}|\*")
_RELOAD_SECONDS = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """The identity and permissions of a valid token."""

    subject: str
    organization_id: str
    """The organization that the caller may act for; "*" for any."""
    permissions: frozenset[str]
    expire_time: float
    """Unix time in seconds."""
    key: VerificationKey
    """The key that verified the token."""


class TokenVerifier:
    """Verifies tokens with the keys of a file that may change while the server runs.

    A verified token is cached until it expires: checking a signature costs 75 to 290 µs, a cache hit less than 1 µs.
    The cache takes 1 to 9 KB for each token.
    """

    def __init__(
        self,
        key_file: Path,
        *,
        audience: str = "pulsa",
        leeway_seconds: float = 30.0,
        cached_tokens: int = 4096,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises OSError or ValueError when the file cannot be read or holds no usable key.

        An unusable key beside usable ones is skipped and logged.
        """
        self._key_file = key_file
        self._audience = audience
        self._leeway_seconds = leeway_seconds
        self._cached_tokens = cached_tokens
        self._clock = clock
        self._content = key_file.read_bytes()
        self._logged_error = ""
        self.unusable_keys: tuple[str, ...] = ()
        """The names of the keys that were skipped: see KeySet.unusable."""
        self._set_keys(read_keys(self._content))
        READ_TIME.set(clock())
        self._callers: OrderedDict[str, Caller] = OrderedDict()

    def verify(self, token: str) -> Caller:
        """Return the caller of the token. Raises TokenInvalid, and nothing else, for an invalid token."""
        caller = self._callers.get(token)
        if caller is None:
            caller = self._check(token)
            self._callers[token] = caller
            if len(self._callers) > self._cached_tokens:
                self._callers.popitem(last=False)
        elif caller.expire_time + self._leeway_seconds <= self._clock():
            del self._callers[token]
            raise TokenInvalid
        else:
            self._callers.move_to_end(token)
        return caller

    def still_accepts(self, caller: Caller) -> bool:
        """Whether the caller's token would be accepted now: it has not expired, and its key was not removed."""
        return caller.expire_time + self._leeway_seconds > self._clock() and caller.key in self._keys

    def reload(self) -> None:
        """Read the keys again and clear the cache if the file changed; log an unusable file and keep the old keys.

        Raises nothing: a removed key would stay valid if the reloading ended.
        """
        try:
            content = self._key_file.read_bytes()
            found = None if content == self._content else read_keys(content)
        except Exception as error:  # noqa: BLE001 - no file may end the reloading
            self._log_error(type(error).__name__)
            return
        self._logged_error = ""
        READ_TIME.set(self._clock())
        if found is not None:
            self._content = content
            self._set_keys(found)
            self._callers.clear()
            _log.info("token_keys_reloaded", keys=len(found.keys))

    def _set_keys(self, found: KeySet) -> None:
        self._keys, self.unusable_keys = found
        for name in found.unusable:
            _log.warning("token_key_skipped", file=str(self._key_file), key=name)

    def _log_error(self, why: str) -> None:
        if why != self._logged_error:  # once, not every second
            self._logged_error = why
            _log.error("token_keys_not_reloaded", alert=True, file=str(self._key_file), why=why)

    async def reload_on_change(self) -> None:
        """Reload the keys within a second of each change of the file, until cancelled."""
        while True:
            await asyncio.sleep(_RELOAD_SECONDS)
            self.reload()

    def _check(self, token: str) -> Caller:
        if len(token) > _MAXIMUM_TOKEN_LENGTH:
            raise TokenInvalid
        try:
            header = jwt.get_unverified_header(token)
            for key in self._candidates(header):
                claims = self._claims(token, key)
                if claims is not None:
                    return _caller(claims, key)
        except Exception as error:  # noqa: BLE001 - any error that a hostile token causes is a refusal
            _log.debug("token_refused", why=type(error).__name__)
        raise TokenInvalid

    def _candidates(self, header: dict[str, Any]) -> list[VerificationKey]:
        algorithm, name = header["alg"], header.get("kid")
        return [
            key
            for key in self._keys
            if key.algorithm == algorithm and (name is None or key.name is None or key.name == name)
        ]

    def _claims(self, token: str, key: VerificationKey) -> dict[str, Any] | None:
        try:
            return jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=self._audience,
                leeway=self._leeway_seconds,
                options={"require": ["exp", "aud", "sub"]},
            )
        except jwt.InvalidSignatureError:
            return None  # another key may have signed it


def _caller(claims: dict[str, Any], key: VerificationKey) -> Caller:
    subject, organization_id, permissions = claims["sub"], claims["organization_id"], claims["permissions"]
    if not isinstance(permissions, list) or not all(isinstance(permission, str) for permission in permissions):
        raise ValueError("permissions is not a list of strings")
    if not _SUBJECT.fullmatch(subject) or not _ORGANIZATION_ID.fullmatch(organization_id):
        raise ValueError("sub or organization_id is malformed")
    granted = ALL_PERMISSIONS.intersection(permissions)  # not unknown ones, of which a token may have thousands
    if organization_id == ANY_ORGANIZATION and ALL in permissions:
        granted = ALL_PERMISSIONS
    return Caller(subject, organization_id, granted, float(claims["exp"]), key)


def mint(
    private_key: bytes,
    *,
    subject: str,
    organization_id: str,
    permissions: Sequence[str],
    lifetime_seconds: float,
    audience: str = "pulsa",
) -> str:
    """Sign a token with an Ed25519 private key (PEM), for development and tests. Production has its own issuer."""
    now = time.time()
    claims = {
        "sub": subject,
        "aud": audience,
        "iat": now,
        "exp": now + lifetime_seconds,
        "organization_id": organization_id,
        "permissions": list(permissions),
    }
    return jwt.encode(claims, private_key, algorithm="EdDSA")
