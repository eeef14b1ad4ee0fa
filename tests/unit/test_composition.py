"""Settings that only composition checks: each error is a SettingsError that names the right setting."""

from dataclasses import fields

import pytest

from server.api.tls import TlsFiles
from server.composition import _TLS_SETTINGS, check_lease, open_audit_keys, open_crypto, open_stripe, signing_secrets
from server.environment import SettingsError, load_settings
from server.settings import Settings, Tls


def test_webhook_secrets_are_split_and_trimmed() -> None:
    settings = load_settings({"PULSA_STRIPE_WEBHOOK_SECRETS": "whsec_a, whsec_b,"})

    assert signing_secrets(settings) == ["whsec_a", "whsec_b"]


@pytest.mark.parametrize("value", ["", " , "])
def test_a_list_without_a_webhook_secret_is_no_secret(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^PULSA_STRIPE_WEBHOOK_SECRETS: is needed$"):
        signing_secrets(load_settings({"PULSA_STRIPE_WEBHOOK_SECRETS": value}))


def test_missing_keys_are_needed_and_not_malformed() -> None:
    with pytest.raises(SettingsError, match=r"^PULSA_SECRET_KEYS: is needed$"):
        open_crypto(Settings())
    with pytest.raises(SettingsError, match=r"^PULSA_SECRET_KEYS: must be"):
        open_crypto(load_settings({"PULSA_SECRET_KEYS": "first:short"}))
    with pytest.raises(SettingsError, match=r"^PULSA_AUDIT_KEYS: must be"):
        open_audit_keys(load_settings({"PULSA_AUDIT_KEYS": "first:short"}))
    assert open_audit_keys(Settings()) is None


def test_a_lease_shorter_than_its_work_names_the_lease() -> None:
    with pytest.raises(SettingsError, match=r"^PULSA_STRIPE_LEASE_SECONDS: must exceed 30"):
        open_stripe(load_settings({"PULSA_STRIPE_API_KEY": "sk_test_x", "PULSA_STRIPE_LEASE_SECONDS": "30"}))
    with pytest.raises(SettingsError, match=r"^PULSA_DELIVERY_LEASE_SECONDS: must exceed 30"):
        check_lease(load_settings({"PULSA_CHANNEL_SMS": "twilio,vonage", "PULSA_DELIVERY_LEASE_SECONDS": "30"}))


def test_every_tls_file_has_a_setting() -> None:
    assert _TLS_SETTINGS.keys() == {field.name for field in fields(TlsFiles)}
    assert set(_TLS_SETTINGS.values()) == {f"PULSA_TLS_{name.upper()}" for name in Tls.model_fields}
