"""The keys of the settings, as the objects that use them. Each function raises SettingsError for a malformed key."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from server.credits.ledger import AuditKeys
from server.credits.receipts import SigningKeys
from server.environment import SettingsError, required
from server.otps.crypto import Crypto
from server.settings import Settings

Keys = TypeVar("Keys")


def open_crypto(settings: Settings) -> Crypto:
    """The encryption, and the keys of codes and digests. Raises SettingsError for a missing key too."""
    try:
        return Crypto(
            settings.secret.key_ring(),
            digest_secrets=settings.secret.digest_key_ring(),
            test_organizations=frozenset(settings.organization.test),
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


def open_audit_keys(settings: Settings) -> AuditKeys | None:
    """The keys of the ledger's MACs; None when there are none."""
    return _open(AuditKeys, settings.audit.key_ring)


def open_signing_keys(settings: Settings) -> SigningKeys | None:
    """The keys of receipts; None when there are none."""
    return _open(SigningKeys, settings.audit.signing_key_ring)


def signing_secrets(settings: Settings) -> list[str]:
    """Return the signing secrets of the webhook endpoint, without surrounding spaces. Raises SettingsError for none."""
    name = "PULSA_STRIPE_WEBHOOK_SECRETS"
    secrets = required(settings.stripe.webhook_secrets, name).get_secret_value().split(",")
    return required([secret.strip() for secret in secrets if secret.strip()] or None, name)


def _open(kind: Callable[[Mapping[str, bytes]], Keys], read: Callable[[], Mapping[str, bytes] | None]) -> Keys | None:
    try:
        ring = read()
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return kind(ring) if ring else None
