"""Settings that only composition checks: each error is a SettingsError that names the right setting."""

import re
import sys
from contextlib import AsyncExitStack
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from server.api.tls import TlsFiles
from server.cli import doctor
from server.composition import (
    _TLS_SETTINGS,
    _open_traces,
    check_lease,
    open_stripe,
)
from server.environment import SettingsError, load_settings
from server.keyrings import open_audit_keys, open_crypto, open_signing_keys, signing_secrets
from server.otps.destinations import LIBRARY_DATE
from server.otps.operator import area_policy
from server.otps.sms_pumping import AreaPolicy
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
    with pytest.raises(SettingsError, match=r"^PULSA_AUDIT_SIGNING_KEYS: needs PULSA_AUDIT_KEYS$"):
        open_signing_keys(load_settings({"PULSA_AUDIT_SIGNING_KEYS": f"first:{KEYS[0]}"}))
    assert open_signing_keys(load_settings({"PULSA_AUDIT_KEYS": f"first:{KEYS[0]}"})) is None
    with pytest.raises(SettingsError, match=r"^PULSA_SECRET_KEYS: every key needs an id"):
        open_crypto(load_settings({"PULSA_SECRET_KEYS": f":{KEYS[0]}"}))


def test_traces_without_their_extra_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.trace.v1", None)

    assert _open_traces(AsyncExitStack(), Settings()) is None
    with pytest.raises(ValueError, match=r"^PULSA_TRACES_HEADERS: must be name=value"):
        _ = load_settings({"PULSA_TRACES_HEADERS": "token"}).traces.header_fields
    with pytest.raises(SettingsError, match=r"^PULSA_TRACES_ENDPOINT: needs pip install 'pulsa-server\[traces\]'$"):
        _open_traces(AsyncExitStack(), load_settings({"PULSA_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}))


@pytest.mark.parametrize("name", ["PULSA_LIMIT_AREAS", "PULSA_LIMIT_BLOCKED_AREAS"])
@pytest.mark.parametrize("area", ["UK", "AX", "+999"])
def test_an_area_without_numbers_stops_the_start_with_its_name(name: str, area: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}: {re.escape(area)} matches no "):
        area_policy(load_settings({name: f"ID,{area}"}))


def test_the_types_and_the_new_ranges_of_numbers_are_settings() -> None:
    policy = area_policy(load_settings({"PULSA_LIMIT_NUMBER_TYPES": "pager", "PULSA_LIMIT_EXTRA_PREFIXES": "+88064"}))

    assert (policy.number_types, policy.extra_prefixes) == (frozenset({"pager"}), ("+88064",))
    assert AreaPolicy() == area_policy(Settings())
    for name, value in (("PULSA_LIMIT_NUMBER_TYPES", "landline"), ("PULSA_LIMIT_EXTRA_PREFIXES", "88064")):
        with pytest.raises(SettingsError, match=rf"^{name}"):
            load_settings({name: value})


def test_doctor_and_a_metric_tell_how_old_the_data_on_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    day = datetime(LIBRARY_DATE.year, LIBRARY_DATE.month, LIBRARY_DATE.day, tzinfo=UTC)
    monkeypatch.setattr(doctor, "utc_now", lambda: day + timedelta(days=60))
    assert doctor._numbers(Settings()).endswith("60 days old")
    monkeypatch.setattr(doctor, "utc_now", lambda: day + timedelta(days=61))
    with pytest.raises(UserWarning, match="61 days old"):
        doctor._numbers(Settings())
    with pytest.raises(SettingsError, match=r"^PULSA_LIMIT_AREAS: UK"):
        doctor._numbers(load_settings({"PULSA_LIMIT_AREAS": "UK"}))
    assert REGISTRY.get_sample_value("pulsa_number_ranges_timestamp_seconds") == day.timestamp()


KEYS = [f"{letter * 43}=" for letter in "AEI"]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "PULSA_SECRET_DIGEST_KEYS: is needed"),
        ({"KEYS": "first:short"}, "PULSA_SECRET_DIGEST_KEYS: must be base64 of 32 bytes"),
        (
            {"KEYS": f"one:{KEYS[0]},one:{KEYS[1]}"},
            "PULSA_SECRET_DIGEST_KEYS: must be id:base64 entries with distinct ids",
        ),
        ({"KEYS": f"one:{KEYS[0]},two:{KEYS[0]}"}, "PULSA_SECRET_DIGEST_KEYS: must be one key, or two different ones"),
        (
            {"KEYS": ",".join(f"{key[0]}:{key}" for key in KEYS)},
            "PULSA_SECRET_DIGEST_KEYS: must be one key, or two different ones",
        ),
        ({"KEYS": f":{KEYS[0]}"}, "PULSA_SECRET_DIGEST_KEYS: every key needs an id"),
    ],
)
def test_a_wrong_digest_ring_is_refused(variables: dict[str, str], message: str) -> None:
    digest = {f"PULSA_SECRET_DIGEST_{name}": value for name, value in variables.items()}
    with pytest.raises(SettingsError) as error:
        open_crypto(load_settings({"PULSA_SECRET_KEYS": f"first:{KEYS[0]}", **digest}))
    assert str(error.value) == message


def test_a_lease_shorter_than_its_work_names_the_lease() -> None:
    with pytest.raises(SettingsError, match=r"^PULSA_STRIPE_LEASE_SECONDS: must exceed 30"):
        open_stripe(load_settings({"PULSA_STRIPE_API_KEY": "sk_test_x", "PULSA_STRIPE_LEASE_SECONDS": "30"}))
    with pytest.raises(SettingsError, match=r"^PULSA_DELIVERY_LEASE_SECONDS: must exceed 33"):
        check_lease(load_settings({"PULSA_CHANNEL_SMS": "twilio,vonage", "PULSA_DELIVERY_LEASE_SECONDS": "33"}))


def test_every_tls_file_has_a_setting() -> None:
    assert _TLS_SETTINGS.keys() == {field.name for field in fields(TlsFiles)}
    assert set(_TLS_SETTINGS.values()) == {f"PULSA_TLS_{name.upper()}" for name in Tls.model_fields}
