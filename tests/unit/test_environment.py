"""Environment variables become settings, or one line that names what is wrong."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from server.environment import SettingsError, load_settings, variables
from server.settings import Settings

SETTINGS_DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings({}) == load_settings({"PATH": "/bin", "PULSA_LISTEN": ""}) == Settings()


def test_a_variable_is_its_group_and_field() -> None:
    environment = {
        "PULSA_LISTEN": "0.0.0.0:443",
        "PULSA_LIMIT_CALLS_AT_ONCE": "7",
        "PULSA_CHANNEL_SMS": "vonage, twilio",
    }

    settings = load_settings(environment)

    assert (settings.listen, settings.limit.calls_at_once) == ("0.0.0.0:443", 7)
    assert settings.channel.sms == ("vonage", "twilio")


def test_environment_variables_override_a_commands_defaults_and_empty_ones_do_not() -> None:
    own: dict[str, Any] = {"environment": "development", "log": {"level": "warning", "format": "console"}}

    settings = load_settings({"PULSA_LOG_LEVEL": "debug", "PULSA_ENVIRONMENT": ""}, own)

    assert (settings.environment, settings.log.level, settings.log.format) == ("development", "debug", "console")
    assert own == {"environment": "development", "log": {"level": "warning", "format": "console"}}


def test_the_senders_domain_is_sent_as_punycode() -> None:
    settings = load_settings({"PULSA_SMTP_SENDER": "no-reply@bücher.example"})

    assert settings.smtp.sender == "no-reply@xn--bcher-kva.example"


@pytest.mark.parametrize(
    "sender", ["no reply@pulsa.example", "Pulsa <no-reply@pulsa.example>", "jürgen@pulsa.example", "pulsa.example"]
)
def test_a_sender_that_is_no_address_ends_the_start_with_one_line(sender: str) -> None:
    with pytest.raises(SettingsError, match=r"PULSA_SMTP_SENDER: .*must be an address") as refused:
        load_settings({"PULSA_SMTP_SENDER": sender})

    assert "\n" not in str(refused.value)


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk_test_file\n")

    settings = load_settings({"PULSA_STRIPE_API_KEY_FILE": str(file)})

    assert settings.stripe.api_key == SecretStr("sk_test_file")


def test_a_setting_whose_own_name_ends_in_file_is_not_read_from_a_file(tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"

    assert load_settings({"PULSA_SMTP_CA_FILE": str(authorities)}).smtp.ca_file == authorities


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PULSA_LISTN", "127.0.0.1:1"),
        ("PULSA_LISTEN_FILE", "/there/is/no/such/file"),
        ("PULSA_NOTHING_FILE", "/dev/null"),
        ("PULSA_LISTEN", "127.0.0.1"),
        ("PULSA_WORKERS", "0"),
        ("PULSA_WORKERS", "many"),
        ("PULSA_LOG_LEVEL", "loud"),
        ("PULSA_ENVIRONMENT", "Production!"),
        ("PULSA_CHANNEL_EMAIL", "smtp,pigeon"),
        ("PULSA_STRIPE_PAYMENT_METHODS", "{"),
        ("PULSA_DATABASE_URL", "postgres//user:hunter2@somewhere"),
    ],
)
def test_an_error_is_one_line_that_names_the_variable_and_does_not_quote_its_value(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings({name: value})

    message = str(error.value)
    assert message.startswith(name.removesuffix("_FILE") if "NOTHING" in name else name)
    assert "\n" not in message
    assert value not in message
    assert "hunter2" not in message


def test_secrets_do_not_show_in_the_settings() -> None:
    settings = load_settings({"PULSA_STRIPE_API_KEY": "sk_test_hidden", "PULSA_SMTP_PASSWORD": "hunter2"})

    assert "sk_test_hidden" not in repr(settings)
    assert "hunter2" not in repr(settings)


def test_every_setting_has_a_description_and_a_type() -> None:
    listed = list(variables())

    assert len({variable.name for variable in listed}) == len(listed) > 80
    assert [variable.name for variable in listed if not variable.description or not variable.type] == []
    assert {variable.name: variable.type for variable in listed}["PULSA_CHANNEL_TEMPLATES"] == "path"


def test_every_setting_can_be_read_from_a_file() -> None:
    for variable in variables():
        with pytest.raises(SettingsError) as error:
            load_settings({variable.name: "", f"{variable.name}_FILE": "/there/is/no/such/file"})
        assert str(error.value).startswith(f"{variable.name}_FILE: cannot be read")


def test_every_setting_is_documented() -> None:
    document = SETTINGS_DOCUMENT.read_text()

    assert [variable.name for variable in variables() if f"`{variable.name}`" not in document] == []
